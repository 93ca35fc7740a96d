"""AMX: the same bits as without it, executed by the processor or else by an emulator of its instructions."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import amx
import linear_outputs
import pytest
import torch
from checkout import ROOT
from safetensors.torch import load_file

from engine.artifacts import Target, load_manifest

SUPPORT = ROOT / "tests" / "support"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := amx.unusable():
        pytest.skip(reason)
    return amx.compile_emulator(tmp_path_factory.mktemp("amx"))


class Artifacts(NamedTuple):
    """The tiny model for the two targets."""

    amx: Path
    plain: Path


@pytest.fixture(scope="module")
def artifacts(emulator: Path, tiny_checkpoint: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    from engine.compiler.build import build
    from engine.compiler.options import BuildOptions

    def built(target: str) -> Path:
        output = tmp_path_factory.mktemp("amx-artifact") / "artifact"
        build(BuildOptions(model=str(tiny_checkpoint), output=output, store=store, target=target, quantize="int4"))
        return output

    return Artifacts(built(amx.TARGET), built(amx.PLAIN_TARGET))


def kernels(artifact: Path) -> Path:
    return artifact / load_manifest(artifact).kernel_library


def run(script: str, *arguments: Path, emulator: Path | None, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", str(SUPPORT / script), *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env=amx.environment(emulator, PYTHONPATH=str(SUPPORT), **environment),
    )


def test_linears_are_those_without_amx_and_the_reference_bit_for_bit(emulator: Path, artifacts: Artifacts, tmp_path: Path) -> None:
    results: list[list[dict[tuple[object, ...], Any]]] = []
    for artifact, preloaded in ((artifacts.amx, emulator), (artifacts.plain, None)):
        output = tmp_path / f"{len(results)}.pt"
        process = run("linear_outputs.py", kernels(artifact), output, emulator=preloaded)
        assert process.returncode == 0, process.stderr
        results.append(torch.load(output))
    (outputs, counts), (plain_outputs, _) = results
    for case in linear_outputs.cases():
        expected = linear_outputs.expected(case)
        assert torch.equal(plain_outputs[case], expected), case
        assert torch.equal(outputs[case], expected), case
        assert counts[case] == (0 if amx.is_native() else linear_outputs.products(case)), case


def test_a_model_gives_the_logits_that_it_gives_without_amx(emulator: Path, artifacts: Artifacts, tmp_path: Path) -> None:
    prompts = [[(7 * index + 5) % 323 for index in range(length)] for length in (3, 17, 100)]
    products: list[str] = []
    logits: list[dict[str, torch.Tensor]] = []
    for artifact, preloaded in ((artifacts.amx, emulator), (artifacts.plain, None)):
        output = tmp_path / f"{len(logits)}.safetensors"
        process = run("amx_logits.py", artifact, output, Path("--last"), emulator=preloaded, text=json.dumps(prompts))
        assert process.returncode == 0, process.stderr
        products.append(process.stdout.strip())
        logits.append(load_file(output))
    for index in range(len(prompts)):
        assert logits[0][str(index)].isfinite().all()
        assert torch.equal(logits[0][str(index)], logits[1][str(index)])
    assert products[1] == "None"
    assert (int(products[0]) == 0) == amx.is_native()


def test_a_system_that_refuses_tiles_is_named(emulator: Path, artifacts: Artifacts, tmp_path: Path) -> None:
    process = run("amx_logits.py", artifacts.amx, tmp_path / "none", emulator=emulator, text="[[1]]", AMX_EMULATOR_REFUSES="1")
    assert process.returncode == 7
    assert "does not let a process run the kernels" in process.stderr
    assert "refused: Operation not supported" in process.stderr
    assert "hint: build the artifact for the same target without +amx_int8" in process.stderr
    assert not (tmp_path / "none").exists()


FAULTS = {
    "tiles are not configured": "product();",
    "the tile has no shape": "shape(16, 64, 16, 32, 0, 0); product();",
    "ldtilecfg: more than 16 rows": "shape(17, 64, 16, 32, 8, 64);",
    "ldtilecfg: more than 64 bytes in a row": "shape(16, 68, 16, 32, 8, 64);",
    "ldtilecfg: rows without bytes": "shape(16, 0, 16, 32, 8, 64);",
    "ldtilecfg: there are 8 tiles": "shapes.set(8, 16, 64); shape(16, 64, 16, 32, 8, 64);",
    "ldtilecfg: reserved bytes": "shapes.zeros[3] = 1; shape(16, 64, 16, 32, 8, 64);",
    "tdpb: sum and first factor differ in rows": "shape(16, 64, 15, 32, 8, 64); product();",
    "tdpb: sum and second factor differ": "shape(16, 64, 16, 32, 8, 60); product();",
    "tdpb: depths differ": "shape(16, 64, 16, 64, 8, 64); product();",
}
PROGRAM = """
#include "amx.h"
using namespace engine;
TileShapes shapes;
[[maybe_unused]] void shape(int sum_rows, int sum_bytes, int x_rows, int x_bytes, int w_rows, int w_bytes) {
  shapes.set(0, sum_rows, sum_bytes), shapes.set(1, x_rows, x_bytes), shapes.set(2, w_rows, w_bytes);
  configure_tiles(shapes);
}
[[maybe_unused]] void product() { add_tile_product<0, 1, 2>(); }
int main() { FAULT }
"""


@pytest.mark.skipif(amx.is_native(), reason="the processor itself ends the process here, without words")
@pytest.mark.parametrize("message", FAULTS)
def test_the_emulator_hides_no_fault(message: str, emulator: Path, tmp_path: Path) -> None:
    source, program = tmp_path / "fault.cpp", tmp_path / "fault"
    source.write_text(PROGRAM.replace("FAULT", FAULTS[message]))
    headers = ROOT / "kernels" / "cpu"
    flags = ["-std=c++20", "-O1", *Target.parse(amx.TARGET).compiler_flags, f"-I{headers}"]
    subprocess.run(["g++", *flags, "-o", str(program), str(source)], check=True)
    process = subprocess.run([program], capture_output=True, text=True, check=False, env=amx.environment(emulator))
    assert process.returncode == 99
    assert process.stderr.startswith(f"amx emulator: {message}")

"""Builds that go wrong: a clear error of the right type, and nothing half-written that looks whole."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import TOOLS_TEMPLATE
from patience import wait_until
from rich.console import Console
from safetensors.torch import load_file, save_file

from engine.artifacts import AnswerForms, load_manifest, verify
from engine.artifacts.describe import describe
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.compiler.progress import Reporter
from engine.errors import BuildError, CheckpointError, UnsupportedModelError, UsageError

ENGINE = Path(sys.executable).with_name("engine")


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def assert_nothing_left(output: Path) -> None:
    assert not output.exists()
    assert [path for path in output.parent.iterdir() if ".building-" in path.name] == []


def test_kill_9_in_the_middle_and_the_same_build_again(tiny_checkpoint: Path, own_store: Path, tmp_path: Path) -> None:
    """While segments are compiled, with one in the store."""
    output = tmp_path / "out" / "artifact"
    shutil.rmtree(own_store / "segment")
    command = [str(ENGINE), "build", str(tiny_checkpoint), "-o", str(output), "--store", str(own_store)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    under_way = (tmp_path / "out", ".artifact.building-*"), (own_store, "segment/*/*.so")
    wait_until(lambda: process.poll() is not None or all(list(directory.glob(pattern)) for directory, pattern in under_way))
    assert process.poll() is None, "the build ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not output.exists()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    manifest = load_manifest(output)
    verify(output, manifest)
    assert [path.name for path in output.parent.iterdir()] == ["artifact"]


def test_a_truncated_checkpoint(checkpoint: Path, store: Path, tmp_path: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        build(BuildOptions(model=str(checkpoint), output=tmp_path / "artifact", store=store))
    assert_nothing_left(tmp_path / "artifact")


def test_a_missing_and_an_unknown_tensor(checkpoint: Path, store: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.1.mlp.what.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"up_proj|what"):
        build(BuildOptions(model=str(checkpoint), output=tmp_path / "artifact", store=store))
    assert_nothing_left(tmp_path / "artifact")


@pytest.mark.parametrize(("damage", "says"), [("template", "does not parse"), ("decoder", "decoder")])
def test_text_that_could_not_be_served_fails_before_anything_is_compiled(checkpoint: Path, tmp_path: Path, damage: str, says: str) -> None:
    if damage == "template":
        (checkpoint / "chat_template.jinja").write_text("{% if %}")
    else:
        tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
        (checkpoint / "tokenizer.json").write_text(json.dumps({**tokenizer, "decoder": None}))
    reporter = Reporter(quiet=True)
    with pytest.raises(BuildError, match=says):
        build(BuildOptions(model=str(checkpoint), output=tmp_path / "out", store=tmp_path / "store"), reporter)
    assert reporter.summary.seconds == {}, "no stage was over"
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []
    assert_nothing_left(tmp_path / "out")


def test_the_forms_of_calls_and_reasoning_are_found(checkpoint: Path, store: Path, tmp_path: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text(TOOLS_TEMPLATE)
    build(BuildOptions(model=str(checkpoint), output=tmp_path / "out", store=store))
    manifest = load_manifest(tmp_path / "out")
    assert manifest.forms == AnswerForms(tools="hermes", reasoning="think")
    shown = io.StringIO()
    Console(file=shown, width=200).print(describe(manifest))
    assert re.search(r"tool calls +hermes\s", shown.getvalue())
    assert re.search(r"reasoning +think\s", shown.getvalue())


def test_an_unknown_architecture(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "mamba", "architectures": ["MambaForCausalLM"]}))
    done = subprocess.run(
        [str(ENGINE), "build", str(checkpoint), "-o", str(tmp_path / "artifact")], capture_output=True, text=True, check=False
    )
    assert done.returncode == UnsupportedModelError.exit_code
    assert "mamba" in done.stderr.lower()
    assert "llama" in done.stderr
    assert_nothing_left(tmp_path / "artifact")


def test_weights_that_are_not_numbers(checkpoint: Path, store: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, checkpoint / "model.safetensors")
    from engine.errors import BuildError

    with pytest.raises(BuildError, match="not finite"):
        build(BuildOptions(model=str(checkpoint), output=tmp_path / "artifact", store=store))
    assert_nothing_left(tmp_path / "artifact")


def test_an_output_that_is_in_use(tiny_checkpoint: Path, tiny_artifact: Path, store: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("the only copy")
    with pytest.raises(UsageError, match="not an artifact"):
        build(BuildOptions(model=str(tiny_checkpoint), output=taken, store=store, force=True))
    assert (taken / "thesis.txt").read_text() == "the only copy"
    before = (tiny_artifact / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="an artifact already"):
        build(BuildOptions(model=str(tiny_checkpoint), output=tiny_artifact, store=store))
    assert (tiny_artifact / "manifest.json").read_bytes() == before


def test_force_replaces_an_artifact(tiny_checkpoint: Path, tiny_artifact: Path, store: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))
    build(BuildOptions(model=str(tiny_checkpoint), output=output, store=store, force=True, name="second"))
    manifest = load_manifest(output)
    verify(output, manifest)
    assert manifest.model.name == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_context_longer_than_the_model(tiny_checkpoint: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--max-context"):
        build(BuildOptions(model=str(tiny_checkpoint), output=tmp_path / "artifact", store=store, max_context=10**9))


def test_quantizing_what_is_quantized(smollm2_gguf: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="quantized already"):
        build(BuildOptions(model=str(smollm2_gguf), output=tmp_path / "artifact", store=store, quantize="int8"))


def test_a_damaged_store_entry_is_compiled_again(tiny_checkpoint: Path, tiny_artifact: Path, own_store: Path, tmp_path: Path) -> None:
    key = load_manifest(tiny_artifact).segments[0].key
    damaged = own_store / "segment" / key / f"{key}.so"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    summary = build(BuildOptions(model=str(tiny_checkpoint), output=tmp_path / "artifact", store=own_store))
    assert (summary.segments_compiled, summary.segments_reused) == (1, 2)
    verify(tmp_path / "artifact", load_manifest(tmp_path / "artifact"))


@pytest.mark.usefixtures("tiny_artifact")
def test_a_full_disk(tiny_checkpoint: Path, store: Path, tmp_path: Path) -> None:
    """Everything is compiled already; the weights do not fit into the largest file that this build may write."""
    command = [str(ENGINE), "build", str(tiny_checkpoint), "-o", str(tmp_path / "artifact"), "--store", str(store)]
    limited = 'ulimit -f 100; trap "" XFSZ; exec "$@"'
    done = subprocess.run(["bash", "-c", limited, "bash", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "hint: free some space" in done.stderr
    assert_nothing_left(tmp_path / "artifact")


@pytest.mark.parametrize("wrong", [{"quantize": "fp3"}, {"kv_dtype": "float8"}, {"jobs": 0}])
def test_options_that_do_not_exist(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        BuildOptions(model="model", output=tmp_path / "artifact", **wrong)

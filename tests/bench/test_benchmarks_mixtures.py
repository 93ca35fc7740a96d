"""benchmarks/mixtures.py and what it is made of: the files that it writes, what it reads out of results, memory, segments."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from artifact_stand_in import edit_manifest
from checkout import ROOT
from gguf_files import write_gguf
from random_checkpoints import write_random_checkpoint
from rich_artifact import write_rich_artifact

from engine.artifacts import WeightInfo
from engine.models.open import open_checkpoint
from engine.models.parts.latent_attention import LatentAttentionSpec
from engine.models.parts.moe import MoESpec
from engine.models.stored_values import dequantize


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`program(NAME)` is a program of the folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with a tokenizer."""
    directory = tmp_path_factory.mktemp("tokenizer")
    return write_gguf(write_random_checkpoint("llama", directory / "model"), directory / "model.gguf")


def tiny(random_gguf: Any) -> Any:
    """A shape like DeepSeek V2 Lite's: a dense layer, then layers of 4 experts of which 2 are chosen, all with latent attention."""
    keys = random_gguf._keys(64, 4, 1, 48, 4, 2, 32) | {
        "attention.value_length": 32,
        "attention.q_lora_rank": 0,
        "attention.kv_lora_rank": 32,
        "attention.key_length_mla": 48,
        "attention.value_length_mla": 32,
        "rope.dimension_count": 16,
        "feed_forward_length": 96,
        "leading_dense_block_count": 1,
        "expert_shared_count": 1,
        "expert_weights_scale": 1.0,
    }
    matrices = {
        "attn_q.weight": (4 * 48, 64),
        "attn_kv_a_mqa.weight": (48, 64),
        "attn_k_b.weight": (4, 32, 32),
        "attn_v_b.weight": (4, 32, 32),
        "attn_output.weight": (64, 128),
    }
    vectors = {"attn_norm.weight": (64,), "ffn_norm.weight": (64,), "attn_kv_a_norm.weight": (32,), "ffn_gate_inp.weight": (4, 64)}
    return random_gguf.Shape(
        architecture="deepseek2",
        hidden=64,
        keys=keys,
        matrices=matrices | random_gguf._experts(4, 64, 32) | random_gguf._mlp(64, 32, "_shexp"),
        dense=random_gguf._mlp(64, 96),
        vectors=vectors,
        type=random_gguf.Type.Q8_0,
        head=random_gguf.Type.Q8_0,
    )


def test_a_random_file_is_a_model_of_its_shape(program: Any, tokenizer: Path, tmp_path: Path) -> None:
    random_gguf = program("random_gguf")
    random_gguf.write(tiny(random_gguf), 3, tokenizer, tmp_path / "model.gguf")
    checkpoint = open_checkpoint(str(tmp_path / "model.gguf"))
    assert all(isinstance(layer.mixer, LatentAttentionSpec) for layer in checkpoint.spec.layers)
    first, *others = [layer.channel for layer in checkpoint.spec.layers]
    assert not isinstance(first, MoESpec)
    for channel in others:
        assert isinstance(channel, MoESpec)
        assert (channel.router.experts, channel.router.chosen) == (4, 2)
    loaded = checkpoint.read("layers.1.mlp.experts.down.weight")
    values = dequantize(loaded.format, loaded.data).numpy()
    assert np.isfinite(values).all()
    assert 0.5 < values.std() * 32**0.5 < 2  # of 32 inputs: what goes in comes out as large


def test_a_file_without_weights_has_the_same_header_and_size(program: Any, tokenizer: Path, tmp_path: Path) -> None:
    random_gguf = program("random_gguf")
    files = [tmp_path / "whole.gguf", tmp_path / "hole.gguf"]
    for file, weights in zip(files, (True, False), strict=True):
        random_gguf.write(tiny(random_gguf), 3, tokenizer, file, weights=weights)
    whole, hole = (open_checkpoint(str(file)) for file in files)
    assert hole.spec == whole.spec
    assert hole.parameters == whole.parameters
    assert files[1].stat().st_size == files[0].stat().st_size
    assert not hole.read("layers.1.mlp.experts.down.weight").data.any()


@pytest.mark.parametrize(
    ("name", "experts"),
    [
        ("qwen3-30b-a3b", [(128, 8)] * 3),
        ("gpt-oss-20b", [(32, 4)] * 3),
        ("deepseek-v2-lite", [None, (64, 6), (64, 6)]),
        ("glm-4.7-flash", [None, (64, 4), (64, 4)]),
    ],
)
def test_shapes_are_those_of_the_models(
    name: str, experts: list[tuple[int, int] | None], program: Any, tokenizer: Path, tmp_path: Path
) -> None:
    random_gguf = program("random_gguf")
    random_gguf.write(random_gguf.SHAPES[name], 3, tokenizer, tmp_path / "model.gguf", weights=False)
    channels = [layer.channel for layer in open_checkpoint(str(tmp_path / "model.gguf")).spec.layers]
    found = [(channel.router.experts, channel.router.chosen) if isinstance(channel, MoESpec) else None for channel in channels]
    assert found == experts


def test_equal_layers_are_as_many_segments_however_many(program: Any, tokenizer: Path, tmp_path: Path) -> None:
    random_gguf, mixtures = program("random_gguf"), program("mixtures")
    counted = []
    for layers in (3, 6):
        file = tmp_path / f"{layers}.gguf"
        random_gguf.write(tiny(random_gguf), layers, tokenizer, file, weights=False)
        counted.append(mixtures.count_segments(file))
    few, many = counted
    assert (few.layers, many.layers) == (3, 6)
    assert few.segments == many.segments > 1
    assert many.calls > few.calls > few.segments


def test_every_shape_has_its_type(program: Any) -> None:
    """The name of a file says it, and peers know by it that both read the same."""
    shapes = program("random_gguf").SHAPES
    assert {name: shape.type.name for name, shape in shapes.items()} == program("mixtures").TYPES


def peer(name: str, *, tpot: float, ttft: float, rates: list[float], error: str | None = None) -> dict[str, Any]:
    return {
        "peer": name,
        "error": error,
        "single": {"summary": {"tpot": {"p50": tpot}}},
        "ttft": {"summary": {"ttft": {"p50": ttft}}},
        "throughput": {"8": [{"summary": {"output_tokens_per_s": rate}} for rate in rates]},
    }


def told(*measured: dict[str, Any]) -> dict[str, Any]:
    return {"settings": {"load": {"ttft_prompt": 1500}}, "results": {"measured": list(measured)}}


def cells(table: Any) -> dict[str, list[str]]:
    return {row[0]: list(row[1:]) for row in table.rows}


def test_ratios_are_of_medians(program: Any) -> None:
    mixtures = program("mixtures")
    ours, theirs = peer("Engine", tpot=0.02, ttft=5.0, rates=[90.0, 100.0, 300.0]), peer("llama.cpp", tpot=0.03, ttft=10.0, rates=[40.0])
    rows = cells(mixtures._served_table(mixtures.served(told(ours, theirs))))
    assert rows == {
        "decode, one client": ["50.0", "33.3", "1.50"],
        "prompt, one client": ["300.0", "150.0", "2.00"],
        "output of 8 clients": ["100.0", "40.0", "2.50"],
    }


def test_a_peer_that_failed_has_no_figures(program: Any) -> None:
    mixtures = program("mixtures")
    failed: dict[str, Any] = {"peer": "llama.cpp", "error": "fell over", "single": None, "ttft": None, "throughput": {}}
    rows = cells(mixtures._served_table(mixtures.served(told(peer("Engine", tpot=0.02, ttft=5.0, rates=[1.0]), failed))))
    assert rows["decode, one client"] == ["50.0", "-", "-"]


def test_steps_are_compared_with_the_bandwidth_and_the_shortest_context(program: Any) -> None:
    mixtures = program("mixtures")
    rows = [
        {"context": 100, "step_s": [0.1, 0.02, 0.01], "weight_bytes": 300, "kv_bytes": 100},
        {"context": 8000, "step_s": [0.03], "weight_bytes": 300, "kv_bytes": 3000},
    ]
    steps = mixtures.steps_of({"limits": {"read_bytes": 40_000.0}, "decode": rows})
    assert [step.bytes_read for step in steps] == [400, 3300]
    assert [step.read_share for step in steps] == pytest.approx([0.5, 2.75])
    assert cells(mixtures._steps_table(steps))["8,000"][1] == "1.50"
    (unknown,) = mixtures.steps_of({"limits": None, "decode": rows[:1]})
    assert unknown.read_share is None


def test_the_largest_layer_is_that_with_most_bytes(program: Any, tmp_path: Path) -> None:
    def weight(dtype: str, *shape: int) -> WeightInfo:
        return WeightInfo(file="weights/0.safetensors", dtype=dtype, shape=list(shape), format="f32", sources=[], recipe=[])

    weights = {
        "embed.weight": weight("float32", 1000),
        "layers.0.a": weight("uint8", 100),
        "layers.1.a": weight("float32", 5, 4),
        "layers.1.b": weight("uint8", 30),
        "layers.10.a": weight("uint8", 60),
    }
    manifest = msgspec.structs.replace(write_rich_artifact(tmp_path / "artifact"), weights=weights)
    assert program("mixtures").largest_layer(manifest) == 110


BUILD = """
import mmap, subprocess, sys
with open(sys.argv[1], "rb") as file:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
assert sum(data[::4096]) == 0
subprocess.run([sys.executable, "-c", "import time; held = b'x' * (192 << 20); time.sleep(1)"], check=True)
"""


def test_memory_of_children_counts_and_that_of_mapped_files_apart(tmp_path: Path) -> None:
    """Of a process that maps 64 MB of a file and has a child of 192 MB, measured by a small process, as the program is one."""
    file = tmp_path / "file"
    file.write_bytes(bytes(64 << 20))
    code = f"import json, mixtures; print(json.dumps(mixtures.peak_memory({[sys.executable, '-c', BUILD, str(file)]})))"
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=variables, capture_output=True, text=True, check=True)
    seconds, resident, anonymous = json.loads(done.stdout)
    assert seconds >= 1
    assert (192 << 20) < resident < (240 << 20)  # the child alone, which is larger than its parent
    assert (192 << 20) < anonymous < (240 << 20)  # both, without the file


def test_a_command_that_fails_is_not_measured(program: Any) -> None:
    with pytest.raises(SystemExit, match="exited with 3"):
        program("mixtures").peak_memory([sys.executable, "-c", "raise SystemExit(3)"])


ENGINE = """#!{python}
import sys
from pathlib import Path
arguments = sys.argv[1:]
if "absorb_latent" in arguments:
    sys.exit("resolve 1/1\\nerror: it does not trace\\nhint: report it")
output = Path(arguments[arguments.index("-o") + 1])
output.mkdir()
(output / "manifest.json").write_bytes(Path({manifest!r}).read_bytes())
"""


def test_passes_that_find_something_are_left_out_each_and_those_that_a_model_needs_named(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds are those of a stand-in, which says that three passes had matches."""
    passes = program("passes")
    write_rich_artifact(tmp_path / "rich")
    matches = {"absorb_latent": 2, "route_experts": 2, "group_experts": 0, "combine_experts": 1}
    reports = [{"name": name, "matches": count, "nodes_before": 9, "nodes_after": 8} for name, count in matches.items()]
    edit_manifest(tmp_path / "rich", lambda content: content.update(fusion=reports))
    engine = tmp_path / "engine"
    engine.write_text(ENGINE.format(python=sys.executable, manifest=str(tmp_path / "rich" / "manifest.json")))
    engine.chmod(0o755)
    monkeypatch.setattr(passes, "ENGINE", engine)
    (tmp_path / "work").mkdir()
    artifacts, failures = passes.build_all(
        "model.gguf", tmp_path / "work", tmp_path / "store", ["absorb_latent", "route_experts", "group_experts"]
    )
    assert {name: path.name for name, path in artifacts.items()} == {"all passes": "all", "route_experts": "route_experts"}
    assert failures == {"absorb_latent": "error: it does not trace"}


def test_the_table_of_passes_has_every_step(program: Any) -> None:
    steps = {"decode 1": {"median_s": 0.01, "ratio": 1.0}, "prefill 256": {"median_s": 0.5, "ratio": 1.0}}
    slower = {"decode 1": {"median_s": 0.04, "ratio": 4.0}, "prefill 256": {"median_s": 1.0, "ratio": 2.0}}
    told = {"without": {"all passes": steps, "group_experts": slower}, "failures": {"absorb_latent": "error: no"}}
    table = program("mixtures")._passes_table(told)
    assert cells(table) == {"all passes": ["10.00", "1.000", "500.00", "1.000"], "group_experts": ["40.00", "4.000", "1000.00", "2.000"]}
    assert table.notes == ["cannot be built without absorb_latent: error: no"]

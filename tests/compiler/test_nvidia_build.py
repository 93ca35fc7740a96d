"""`engine build --target sm90` without a GPU: what the artifact holds, and that its kernels and graphs compute the model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from bfloat16_loss import logits_and_loss
from checkout import ROOT
from families import write_tiny_checkpoint
from fp8_checkpoints import SHAPE as FP8_SHAPE
from fp8_checkpoints import write_static_fp8
from gguf_files import write_gguf
from gpu_steps import Chunk, step_lists
from interpreted_gpu import logits
from quantized_checkpoints import gptq, write_quantized
from random_checkpoints import write_random_checkpoint

from engine.artifacts import Manifest, load_manifest
from engine.artifacts.graph import DRAW_INPUTS
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.errors import UnsupportedModelError, UsageError
from engine.kernels.nvidia import reference

# Nothing that fits the kernels' tiles.
SHAPE: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 208, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
# Whole blocks of every format.
WHOLE_BLOCKS: dict[str, Any] = SHAPE | {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint("llama", tmp_path_factory.mktemp("gpu") / "model", **SHAPE, num_hidden_layers=3)


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An artifact and its debug dump. Into a new store: what is reused has left no sources to replay."""
    directory = tmp_path_factory.mktemp("sm90")
    run_build(checkpoint, directory, "--debug-dump", "dump")
    return directory / "out", directory / "dump"


def run_build(checkpoint: Path, directory: Path, *arguments: str, **environment: str) -> str:
    """Returns what the build says."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "engine",
        "build",
        str(checkpoint),
        "--target",
        "sm90",
        "-o",
        "out",
        "--store",
        "store",
        *arguments,
    ]
    done = subprocess.run(command, cwd=directory, env=os.environ | {"PYTHONSAFEPATH": "1"} | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def step(chunks: list[tuple[list[int], int, list[int]]]) -> dict[str, Any]:
    """Inputs of a step: for each sequence its tokens so far, how many of them are old, and its blocks."""
    return step_lists([Chunk(*chunk) for chunk in chunks])


@pytest.mark.slow
def test_graphs_replayed_by_the_interpreter_compute_the_model(checkpoint: Path, built: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, dump = built
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randint(3, 300, (count,), generator=generator).tolist() for count in (40, 8, 36))
    blocks = {"a": [5, 2], "b": [1], "c": [7, 3]}
    steps = [
        step([(a[:38], 0, blocks["a"]), (b[:7], 0, blocks["b"])]),  # two prompts
        step([(a[:39], 38, blocks["a"]), (b[:8], 7, blocks["b"]), (c[:34], 0, blocks["c"])]),  # two decode, one prompt
        step([(a[:40], 39, blocks["a"])]),  # decode, a bucket of its size
        step([(c[:35], 34, blocks["c"]), (b[:8], 7, blocks["b"]), (a[:40], 39, blocks["a"])]),  # padded to 4
        step([(c[:36], 35, blocks["c"])]),
    ]
    rows = logits(artifact, dump, steps, tmp_path / "logits.npz")
    all_logits, lost = logits_and_loss(checkpoint, [a, b, c])
    exact = dict(zip("abc", all_logits, strict=True))
    wanted = [
        [exact["a"][37], exact["b"][6]],
        [exact["a"][38], exact["b"][7], exact["c"][33]],
        [exact["a"][39]],
        [exact["c"][34], exact["b"][7], exact["a"][39]],
        [exact["c"][35]],
    ]
    allowed = 4 * lost
    for computed, expected in zip(rows, wanted, strict=True):
        assert np.abs(computed - np.stack(expected)).max() <= allowed
    assert np.array_equal(rows[3][2], rows[2][0]) or np.abs(rows[3][2] - rows[2][0]).max() <= allowed


@pytest.mark.slow
def test_a_step_draws_its_tokens(built: tuple[Path, Path], tmp_path: Path) -> None:
    """What the graph draws is what the operator's reference draws from the logits that are fetched; beside it others take the largest."""
    artifact, dump = built
    mixed = step([([5, 6, 7], 0, [0]), ([9, 8], 0, [1]), ([30], 0, [2])])
    mixed["draws"] = {
        "rows": [0, 2],
        "temperature": [1.5, 0.8],
        "top_k": [0, 200],
        "top_p": [1.0, 0.9],
        "min_p": [0.0, 0.01],
        "uniform": [0.71, 0.43],
    }
    decode = step([([5, 6, 7, 4], 3, [0]), ([9, 8, 7], 2, [1]), ([30, 31], 1, [2])])
    decode["draws"] = {"rows": [1], "temperature": [2.0], "top_k": [0], "top_p": [0.95], "min_p": [0.0], "uniform": [0.999]}
    steps = [mixed, decode]
    rows = logits(artifact, dump, steps, tmp_path / "steps.npz")
    with np.load(tmp_path / "steps.npz") as saved:
        tokens = [saved["tokens0"], saved["tokens1"]]
    for given, computed, chosen in zip(steps, rows, tokens, strict=True):
        draws = given["draws"]
        numbers = [torch.tensor(draws[name], dtype=getattr(torch, dtype)) for name, dtype in DRAW_INPUTS.items()]
        expected = reference.sample(torch.from_numpy(computed[draws["rows"]]).double(), *numbers)
        assert chosen[draws["rows"]].tolist() == expected.tolist()
        assert (chosen[draws["rows"]] != computed[draws["rows"]].argmax(axis=1)).all()


def test_what_the_artifact_holds(built: tuple[Path, Path]) -> None:
    artifact, _ = built
    manifest = load_manifest(artifact)
    assert manifest.target == "sm90"
    assert manifest.kernel_library == ""
    assert manifest.toolchain.triton
    assert {(graph.kind, graph.tokens) for graph in manifest.graphs} >= {("decode", 1), ("decode", 256), ("mixed", 16), ("mixed", 2048)}
    assert all((artifact / kernel.file).read_bytes()[:4] == b"\x7fELF" for kernel in manifest.kernels)
    assert all(0 < kernel.registers <= 255 for kernel in manifest.kernels)
    assert not list(artifact.rglob("*.py"))
    code = sum(manifest.files[name].bytes for name in manifest.code_files)
    assert code < 5e6


def comparable(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, created=0)


@pytest.mark.slow
def test_two_builds_are_byte_identical(checkpoint: Path, built: tuple[Path, Path], tmp_path: Path) -> None:
    """Another process, directory, home, store, order of hashing and clock."""
    elsewhere = tmp_path / "somewhere" / "else"
    elsewhere.mkdir(parents=True)
    run_build(checkpoint, elsewhere, "--jobs", "1", HOME=str(elsewhere), PYTHONHASHSEED="7", TZ="Asia/Tokyo", LC_ALL="C")
    first, second = built[0], elsewhere / "out"
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    for name in names:
        if name != "manifest.json":
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert comparable(load_manifest(first)) == comparable(load_manifest(second))


def test_no_path_of_the_machine_is_in_the_code(built: tuple[Path, Path]) -> None:
    artifact, _ = built
    here = str(ROOT).encode()
    for name in load_manifest(artifact).code_files:
        content = (artifact / name).read_bytes()
        assert here not in content, name
        assert b"/tmp/" not in content, name


@pytest.mark.parametrize("kv_dtype", ["int8", "float16"])
def test_a_kv_cache_that_the_target_does_not_have(checkpoint: Path, kv_dtype: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=kv_dtype) as error:
        build(BuildOptions(model=str(checkpoint), output=tmp_path / "out", target="sm90", kv_dtype=kv_dtype, store=tmp_path / "store"))
    assert "bfloat16" in (error.value.hint or "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["sm80", "sm100", "sm", "cuda"])
def test_a_target_that_nobody_knows(checkpoint: Path, target: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=target) as error:
        build(BuildOptions(model=str(checkpoint), output=tmp_path / "out", target=target, store=tmp_path / "store"))
    assert "sm90" in (error.value.hint or "")


def test_values_narrower_than_keys_are_refused_by_name(tmp_path: Path) -> None:
    model = write_tiny_checkpoint("mimo_v2_flash", tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match="narrower than its keys") as refused:
        build(BuildOptions(model=str(model), output=tmp_path / "out", target="sm90"))
    assert "--target cpu" in refused.value.hint


def test_the_replay_says_what_each_kernel_is(built: tuple[Path, Path]) -> None:
    artifact, dump = built
    for segment in load_manifest(artifact).segments:
        records = json.loads((dump / "segments" / segment.key / "replay.json").read_text())
        assert records
        assert all(not record["is_here"] or (dump / "segments" / segment.key / f"{record['module']}.py").exists() for record in records)


def test_8b_shaped_without_weights(tmp_path: Path) -> None:
    """The code of a large model, from its configuration alone: small, without spills, and no weights."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    run_build(tmp_path / "model", tmp_path, "--weights", "none")
    manifest = load_manifest(tmp_path / "out")
    assert not manifest.has_weights
    assert not manifest.probe.prompts
    assert manifest.memory.weight_bytes == pytest.approx(2 * manifest.model.parameters, rel=0.01)
    assert [segment.calls for segment in manifest.segments].count(32) == 1  # attention
    assert sum(manifest.files[name].bytes for name in manifest.code_files) < 5e6
    hot = [kernel for kernel in manifest.kernels if not kernel.function.startswith("triton_")]  # those are Inductor's: angles, row numbers
    assert [kernel.function for kernel in hot if kernel.stack_bytes] == [], "a kernel spills"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "engine", "serve", "--artifacts", "out"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 6
    assert "no weights" in done.stderr


def test_warm_builds_trace_nothing(checkpoint: Path, built: tuple[Path, Path], tmp_path: Path) -> None:
    """The program comes from the store, for other weights of the same architecture too."""
    other = write_random_checkpoint("llama", tmp_path / "model", seed=1, **SHAPE, num_hidden_layers=3)
    store = built[0].parent / "store"
    before = sorted(store.iterdir())
    summary = build(BuildOptions(model=str(other), output=tmp_path / "out", target="sm90", store=store))
    assert (summary.segments_compiled, summary.segments_reused) == (0, 5)
    assert "fuse" not in summary.seconds
    assert sorted(store.iterdir()) == before
    ours, theirs = load_manifest(tmp_path / "out"), load_manifest(built[0])
    assert (ours.programs, ours.graphs, ours.kernels, ours.fusion) == (theirs.programs, theirs.graphs, theirs.kernels, theirs.fusion)
    assert ours.probe != theirs.probe


@pytest.mark.exhaustive
@pytest.mark.parametrize("quantize", ["none", "int4"])
def test_quantized_artifacts_compute_their_reference(quantize: str, tmp_path: Path) -> None:
    """Loading replays the golden probe, which the operators' references recorded; decode is compared with prefill.

    none: of a checkpoint in FP8 with static scales of activations, which are weights of the program.
    """
    checkpoint = write_random_checkpoint("llama", tmp_path / "model", **FP8_SHAPE, num_hidden_layers=2)
    if quantize == "none":
        checkpoint = write_static_fp8(checkpoint, tmp_path / "static", lambda name: 2**-8 if "gate" in name else 2**-7)
    run_build(checkpoint, tmp_path, "--quantize", quantize, "--debug-dump", "dump")
    manifest = load_manifest(tmp_path / "out")
    assert ("fp8_tensor" if quantize == "none" else "i4_g32") in {weight.format for weight in manifest.weights.values()}
    compare_decode_with_prefill(tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["q4_k_m", "gptq", "act-order"])
def test_quantized_checkpoints_are_computed_with_as_they_are(kind: str, tmp_path: Path) -> None:
    """As above; and no matrix is widened."""
    is_gguf = kind == "q4_k_m"
    plain = write_random_checkpoint("llama", tmp_path / "plain", **WHOLE_BLOCKS, num_hidden_layers=2, tie_word_embeddings=is_gguf)
    if is_gguf:
        model = write_gguf(plain, tmp_path / "model.gguf", quantization=as_q4_k_m)
    else:
        model = tmp_path / "model"
        write_quantized(plain, model, gptq(act_order="own" if kind == "act-order" else ""))
    assert "widened" not in run_build(model, tmp_path, "--debug-dump", "dump")
    held = {weight.format for weight in load_manifest(tmp_path / "out").weights.values() if len(weight.shape) == 2}
    assert held == ({"q4_k", "q6_k"} if is_gguf else {"w4_g128", "bf16"})  # bf16: what GPTQ leaves as it is, the embeddings
    compare_decode_with_prefill(tmp_path)


def as_q4_k_m(tensor: str) -> str:
    return "Q6_K" if "token_embd" in tensor or "ffn_down" in tensor else "Q4_K"


def compare_decode_with_prefill(directory: Path) -> None:
    tokens = torch.randint(3, 300, (9,), generator=torch.Generator().manual_seed(1)).tolist()
    steps = [step([(tokens[:8], 0, [1])]), step([(tokens, 8, [1])]), step([(tokens, 0, [2])])]
    _, decoded, prefilled = logits(directory / "out", directory / "dump", steps, directory / "logits.npz")
    assert np.abs(decoded - prefilled).max() <= 0.03 * np.abs(prefilled).max()

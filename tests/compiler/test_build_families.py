"""Whole artifacts against `transformers`: every family, built, run in a process of its own, compared in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from random_checkpoints import VOCAB_SIZE, write_random_checkpoint
from tiers import tiered

from engine.artifacts import load_manifest, parse_target
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.compiler.run_artifact import artifact_logits
from engine.compiler.target_kind import kind_of
from engine.compiler.weight_formats import choose_formats
from engine.errors import UsageError
from engine.models.open import open_checkpoint

# Odd sizes, grouped-query ratios, biases, tied and untied heads, windows, scaled RoPE and none.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("llama", {}),
    "llama3": ("llama3", {}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "smollm3": ("smollm3", {}),
    "granite_swa": ("granite_swa", {}),
    "llama2-tied-mha": ("llama", {"num_key_value_heads": 6, "tie_word_embeddings": True}),
    "smollm3-untied": ("smollm3", {"tie_word_embeddings": False, "num_key_value_heads": 2}),
}
# What every run of the tests builds: untied and tied heads, windows, multipliers, layers without positions.
_ALWAYS = ("granite_swa", "llama2-tied-mha", "smollm3-untied")


@pytest.fixture(scope="module", params=tiered(MODELS, _ALWAYS))
def model(request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random checkpoint and its artifact."""
    family, overrides = MODELS[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    checkpoint = write_random_checkpoint(family, directory / "model", seed=11, **overrides)
    build(BuildOptions(model=str(checkpoint), output=directory / "artifact", store=store))
    return checkpoint, directory / "artifact"


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist() for length in (70, 33, 2)]


@torch.no_grad()
def expected_logits(checkpoint: Path, prompt: list[int]) -> tuple[torch.Tensor, float]:
    """`transformers`' float32 logits [T, V], and their largest distance from the same model's in float64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager", dtype=torch.float32)
    logits = model(torch.tensor([prompt])).logits[0]
    exact = model.double()(torch.tensor([prompt])).logits[0]
    return logits, float((logits - exact).abs().max())


def test_prefill_and_every_decode_step_agree_with_transformers(model: tuple[Path, Path]) -> None:
    checkpoint, artifact = model
    decoded = artifact_logits(artifact, prompts(), last_only=False)
    prefilled = artifact_logits(artifact, prompts(), last_only=True)
    for prompt, steps, last in zip(prompts(), decoded, prefilled, strict=True):
        expected, rounding = expected_logits(checkpoint, prompt)
        # Two float32 computations of one function differ by at most the sum of their own errors. Ours sums in another
        # order and may lose up to three times what theirs loses; a short prompt samples few roundings, hence the floor.
        bound = 4 * max(rounding, 1e-6 * float(expected.abs().max()))
        assert float((steps - expected).abs().max()) <= bound
        assert float((last[0] - expected[-1]).abs().max()) <= bound
        # A prompt computed at once and token by token is the same to the bit.
        assert torch.equal(steps[-1], last[0])


def test_every_weight_of_the_program_is_packed_from_the_checkpoint(model: tuple[Path, Path]) -> None:
    manifest = load_manifest(model[1])
    used = {name for call in manifest.step.calls for name in call.inputs if name.startswith("weight:")}
    assert used == {f"weight:{name}" for name in manifest.weights}


@pytest.mark.parametrize("quantize", tiered(["none", "int4"], ["int4"]))
def test_a_probe_from_the_reference_fits_the_target(quantize: str, tiny_checkpoint: Path, store: Path, tmp_path: Path) -> None:
    """What a machine that cannot run the target would record passes the check at load, in every weight format."""
    probes = {}
    for name in ("on_target", "from_reference"):
        with pytest.MonkeyPatch.context() as patch:
            if name == "from_reference":
                patch.setattr("engine.compiler.stages.can_run", lambda target: False)
            build(BuildOptions(model=str(tiny_checkpoint), output=tmp_path / name, store=store, quantize=quantize))
        probes[name] = load_manifest(tmp_path / name).probe
    assert [probe.recorded_on for probe in probes.values()] == ["target", "reference"]
    artifact_logits(tmp_path / "from_reference", [[1, 2, 3]], last_only=True)  # replays the probe
    for golden, reference in zip(probes["on_target"].prompts, probes["from_reference"].prompts, strict=True):
        assert golden.tokens == reference.tokens
        assert golden.top_tokens[0] == reference.top_tokens[0]


def test_the_avx2_target_computes_the_same_function(tiny_checkpoint: Path, tiny_artifact: Path, store: Path, tmp_path: Path) -> None:
    """Built for every AVX2 machine, whatever this machine has."""
    artifact = tmp_path / "artifact"
    build(BuildOptions(model=str(tiny_checkpoint), output=artifact, target="cpu-x86-64-v3", store=store))
    assert load_manifest(artifact).target == "cpu-x86-64-v3"
    for prompt, ours in zip(prompts(), artifact_logits(artifact, prompts(), last_only=False), strict=True):
        expected, rounding = expected_logits(tiny_checkpoint, prompt)
        assert float((ours - expected).abs().max()) <= 4 * max(rounding, 1e-6 * float(expected.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("target", tiered(["cpu", "cpu-x86-64-v3"], ["cpu"]))
def test_a_bfloat16_checkpoint_is_nearer_to_float32_than_transformers_in_bfloat16(target: str, store: Path, tmp_path: Path) -> None:
    """Weights in pairs, activations rounded for each linear, one embedding tied to the head; prefill and decode are the same to the bit."""
    checkpoint = write_random_checkpoint("qwen3", tmp_path / "model", seed=11, dtype=torch.bfloat16)
    build(BuildOptions(model=str(checkpoint), output=tmp_path / "artifact", target=target, store=store))
    weights = load_manifest(tmp_path / "artifact").weights.values()
    assert {(weight.format, len(weight.shape)) for weight in weights} == {("bf16", 4), ("f32", 1)}
    rough = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager", dtype=torch.bfloat16)
    decoded = artifact_logits(tmp_path / "artifact", prompts(), last_only=False)
    prefilled = artifact_logits(tmp_path / "artifact", prompts(), last_only=True)
    for prompt, steps, last in zip(prompts(), decoded, prefilled, strict=True):
        expected, _ = expected_logits(checkpoint, prompt)
        theirs = rough(torch.tensor([prompt])).logits[0].float()
        assert (steps - expected).norm() < (theirs - expected).norm()
        assert torch.equal(steps[-1], last[0])


@torch.no_grad()
def test_a_float16_checkpoint_has_its_keys_and_values_in_float16(store: Path, tmp_path: Path) -> None:
    """And is nearer to float32 than transformers in float16 is, or the same artifact with a cache in bfloat16."""
    checkpoint = write_random_checkpoint("qwen3", tmp_path / "model", seed=11, dtype=torch.float16)
    for name in ("auto", "bfloat16"):
        build(BuildOptions(model=str(checkpoint), output=tmp_path / name, kv_dtype=name, store=store))
    assert [load_manifest(tmp_path / name).caches[0].dtype for name in ("auto", "bfloat16")] == ["float16", "bfloat16"]
    rough = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager", dtype=torch.float16)
    ours, coarse = (artifact_logits(tmp_path / name, prompts(), last_only=False) for name in ("auto", "bfloat16"))
    prefilled = artifact_logits(tmp_path / "auto", prompts(), last_only=True)
    for prompt, steps, coarser, last in zip(prompts(), ours, coarse, prefilled, strict=True):
        expected, _ = expected_logits(checkpoint, prompt)
        theirs = rough(torch.tensor([prompt])).logits[0].float()
        assert (steps - expected).norm() < (theirs - expected).norm()
        assert (steps - expected).norm() < (coarser - expected).norm()
        assert torch.equal(steps[-1], last[0])


@pytest.mark.parametrize(
    ("dtype", "quantize", "target", "cache"),
    [
        (torch.float32, "none", "cpu-x86-64-v4+avx512_bf16", "float32"),
        (torch.float16, "none", "cpu-x86-64-v4+avx512_bf16", "float16"),
        (torch.bfloat16, "none", "cpu-x86-64-v4+avx512_bf16", "bfloat16"),
        (torch.float16, "int8", "cpu-x86-64-v4+avx512_bf16", "bfloat16"),
        (torch.float32, "none", "cpu-x86-64-v3", "float32"),
        (torch.bfloat16, "none", "cpu-x86-64-v3", "float16"),
        (torch.float32, "int8", "cpu-x86-64-v4", "float16"),
    ],
)
def test_the_cache_is_as_exact_as_the_weights_or_what_is_multiplied_fastest(
    dtype: torch.dtype, quantize: str, target: str, cache: str, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(str(write_random_checkpoint("llama", tmp_path / "model", dtype=dtype)))
    assert kind_of(parse_target(target)).kv_dtype("auto", checkpoint, choose_formats(checkpoint, quantize)) == cache


@pytest.mark.parametrize(("dtype", "cache"), [(torch.float32, "float32"), (torch.bfloat16, "float16")])
def test_heads_of_an_odd_size_have_no_pairs(dtype: torch.dtype, cache: str, tmp_path: Path) -> None:
    transformers.GPT2Config(n_embd=45, n_head=3, n_layer=1, architectures=["GPT2LMHeadModel"], dtype=dtype).save_pretrained(tmp_path)
    checkpoint, kind = open_checkpoint(str(tmp_path), weights=False), kind_of(parse_target("cpu-x86-64-v4+avx512_bf16"))
    formats = choose_formats(checkpoint, "none")
    assert [kind.kv_dtype(wanted, checkpoint, formats) for wanted in ("auto", "float16", "int8")] == [cache, "float16", "int8"]
    with pytest.raises(UsageError, match="15 are odd") as error:
        kind.kv_dtype("bfloat16", checkpoint, formats)
    assert "float16" in (error.value.hint or "")

"""Latent attention as whole artifacts: against transformers, and the same bits at any load."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import GENERIC, reference_logits, write_tiny_checkpoint
from gguf_twins import write_twins
from tiers import tiered

from engine.artifacts import load_manifest
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.compiler.run_artifact import artifact_logits
from engine.errors import BuildError
from engine.server.llm import LLM, Params

# With experts in groups and dense layers; without experts; with queries that grow.
FAMILIES = ("deepseek_v3", "youtu", "mistral4-growing", "deepseek_v2-yarn", "minicpm3")
PROMPTS = [
    torch.randint(3, GENERIC["vocab_size"], (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (60, 1, 33, 90, 7, 21)
]
GREEDY = Params(temperature=0, max_tokens=24, logprobs=3, ignore_eos=True)


@pytest.fixture(scope="module", params=tiered(FAMILIES, ("deepseek_v3",)))
def model(request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random checkpoint and its artifact."""
    directory = tmp_path_factory.mktemp(request.param)
    checkpoint = write_tiny_checkpoint(request.param, directory / "model")
    build(BuildOptions(model=str(checkpoint), output=directory / "artifact", store=store))
    return checkpoint, directory / "artifact"


def test_every_token_agrees_with_transformers(model: tuple[Path, Path]) -> None:
    checkpoint, artifact = model
    tokens = PROMPTS[0]
    expected, rounding = reference_logits(checkpoint, tokens)
    (steps,) = artifact_logits(artifact, [tokens], last_only=False)
    (last,) = artifact_logits(artifact, [tokens], last_only=True)
    assert float((steps - expected).abs().max()) <= 4 * max(rounding, 1e-6 * float(expected.abs().max()))
    assert torch.equal(steps[-1], last[0])


def test_one_latent_is_all_that_is_kept(model: tuple[Path, Path]) -> None:
    manifest = load_manifest(model[1])
    (group,) = manifest.caches
    assert (group.kind, group.num_kv_heads, group.head_dim) == ("latent", 1, GENERIC["kv_lora_rank"] + GENERIC["qk_rope_head_dim"])
    assert group.bytes_per_block == len(group.layers) * group.block_size * group.head_dim * (4 if group.dtype == "float32" else 2)
    matches = {report.name: report.matches for report in manifest.fusion}
    assert matches["absorb_latent"] == len(group.layers) == GENERIC["num_hidden_layers"]


def answers(artifact: Path, prompts: list[list[int]], **options: Any) -> list[tuple[list[int], Any]]:
    with LLM(artifact, **options) as llm:
        return [(completion.tokens, completion.logprobs) for completion in llm.generate(prompts, GREEDY)]


KINDS = (("int4", "float32"), ("none", "int8"), ("int8", "float16"))


@pytest.mark.parametrize("kinds", tiered(KINDS, KINDS[:1]), ids="-".join)
def test_a_request_has_the_same_bits_at_any_load(kinds: tuple[str, Any], store: Path, tmp_path: Path) -> None:
    """Alone; with others; in chunks of a few tokens; with so little memory that some are preempted; with one thread; twice, so that
    prefixes are found again."""
    quantize, kv_dtype = kinds
    checkpoint = write_tiny_checkpoint("deepseek_v3", tmp_path / "model")
    artifact = tmp_path / "artifact"
    build(BuildOptions(model=str(checkpoint), output=artifact, store=store, quantize=quantize, kv_dtype=kv_dtype))
    with LLM(artifact) as llm:
        alone = [llm.generate([prompt], GREEDY)[0] for prompt in PROMPTS]
    expected = [(completion.tokens, completion.logprobs) for completion in alone]
    assert answers(artifact, PROMPTS) == expected
    assert answers(artifact, PROMPTS, max_num_seqs=8, max_batch_tokens=8) == expected
    assert answers(artifact, PROMPTS, threads=1) == expected
    assert answers(artifact, PROMPTS * 2) == expected * 2


def test_heads_of_a_gguf_file_keep_their_format(store: Path, tmp_path: Path) -> None:
    """The matrices of heads in Q8_0, whose groups lie along what they are multiplied with: as the file has them."""
    _, file = write_twins(
        "deepseek_v3",
        tmp_path / "twins",
        quantization=lambda name: "Q8_0" if "attn_k_b" in name or "attn_v_b" in name else "F32",
        qk_nope_head_dim=32,
    )
    build(BuildOptions(model=str(file), output=tmp_path / "artifact", store=store))
    formats = {name: info.format for name, info in load_manifest(tmp_path / "artifact").weights.items()}
    assert formats["layers.0.attention.key_up.weight"] == formats["layers.0.attention.value_up.weight"] == "q8_0"
    alone = [answers(tmp_path / "artifact", [prompt])[0] for prompt in PROMPTS[:3]]
    assert answers(tmp_path / "artifact", PROMPTS[:3]) == alone


def test_heads_that_no_panel_holds_are_refused(tmp_path: Path, store: Path) -> None:
    checkpoint = write_tiny_checkpoint("youtu", tmp_path / "model", v_head_dim=24)
    with pytest.raises(BuildError, match="absorb_latent matched nothing"):
        build(BuildOptions(model=str(checkpoint), output=tmp_path / "artifact", store=store))

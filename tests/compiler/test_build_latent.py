"""Latent attention as whole artifacts: against transformers, and the same bits at any load."""

from pathlib import Path
from typing import Any

import pytest
from families import GENERIC, write_tiny_checkpoint
from gguf_twins import write_twins
from tiers import tiered
from whole_artifacts import PROMPTS, answers, build_artifact, build_tiny, check_any_load, check_every_token

from engine.artifacts import load_manifest
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.errors import BuildError

# With experts in groups and dense layers; without experts; with queries that grow.
FAMILIES = ("deepseek_v3", "youtu", "mistral4-growing", "deepseek_v2-yarn", "minicpm3")


@pytest.fixture(scope="module", params=tiered(FAMILIES, ("deepseek_v3",)))
def model(request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build_tiny(request.param, tmp_path_factory.mktemp(request.param), store)


def test_every_token_agrees_with_transformers(model: tuple[Path, Path]) -> None:
    check_every_token(*model)


def test_one_latent_is_all_that_is_kept(model: tuple[Path, Path]) -> None:
    manifest = load_manifest(model[1])
    (group,) = manifest.caches
    assert (group.kind, group.num_kv_heads, group.head_dim) == ("latent", 1, GENERIC["kv_lora_rank"] + GENERIC["qk_rope_head_dim"])
    assert group.bytes_per_block == len(group.layers) * group.block_size * group.head_dim * (4 if group.dtype == "float32" else 2)
    matches = {report.name: report.matches for report in manifest.fusion}
    assert matches["absorb_latent"] == len(group.layers) == GENERIC["num_hidden_layers"]


KINDS = (("int4", "float32"), ("none", "int8"), ("int8", "float16"))


@pytest.mark.parametrize("kinds", tiered(KINDS, KINDS[:1]), ids="-".join)
def test_a_request_has_the_same_bits_at_any_load(kinds: tuple[str, Any], store: Path, tmp_path: Path) -> None:
    quantize, kv_dtype = kinds
    checkpoint = write_tiny_checkpoint("deepseek_v3", tmp_path / "model")
    check_any_load(build_artifact(checkpoint, tmp_path / "artifact", store, quantize=quantize, kv_dtype=kv_dtype))


def test_heads_of_a_gguf_file_keep_their_format(store: Path, tmp_path: Path) -> None:
    """The matrices of heads in Q8_0, whose groups lie along what they are multiplied with: as the file has them."""
    _, file = write_twins(
        "deepseek_v3",
        tmp_path / "twins",
        quantization=lambda name: "Q8_0" if "attn_k_b" in name or "attn_v_b" in name else "F32",
        qk_nope_head_dim=32,
    )
    artifact = build_artifact(file, tmp_path / "artifact", store)
    formats = {name: info.format for name, info in load_manifest(artifact).weights.items()}
    assert formats["layers.0.attention.key_up.weight"] == formats["layers.0.attention.value_up.weight"] == "q8_0"
    assert answers(artifact, PROMPTS[:3]) == [answers(artifact, [prompt])[0] for prompt in PROMPTS[:3]]


def test_heads_that_no_panel_holds_are_refused(tmp_path: Path, store: Path) -> None:
    checkpoint = write_tiny_checkpoint("youtu", tmp_path / "model", v_head_dim=24)
    with pytest.raises(BuildError, match="absorb_latent matched nothing"):
        build(BuildOptions(model=str(checkpoint), output=tmp_path / "artifact", store=store))

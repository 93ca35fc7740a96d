"""Mixtures of experts as whole artifacts: against transformers, and the same bits at any load."""

from pathlib import Path

import pytest
from families import write_tiny_checkpoint
from gguf_twins import write_twins
from tiers import tiered
from whole_artifacts import PROMPTS, answers, build_artifact, build_tiny, check_any_load, check_every_token

from engine.artifacts import load_manifest
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.errors import BuildError

# Softmax with a shared expert behind a gate; softmax of the chosen, biases, clamps; sigmoid with groups, a bias and dense layers.
FAMILIES = ("qwen2_moe", "gpt_oss", "glm4_moe")


@pytest.fixture(scope="module", params=tiered(FAMILIES, ("glm4_moe",)))
def model(request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build_tiny(request.param, tmp_path_factory.mktemp(request.param), store)


def test_every_token_agrees_with_transformers(model: tuple[Path, Path]) -> None:
    check_every_token(*model)


def test_every_layer_with_experts_was_grouped(model: tuple[Path, Path]) -> None:
    manifest = load_manifest(model[1])
    matches = {report.name: report.matches for report in manifest.fusion}
    layers = {name.split(".")[1] for name, weight in manifest.weights.items() if weight.experts is not None}
    assert matches["route_experts"] == matches["group_experts"] == len(layers) > 0
    assert matches["join_shared_expert"] == (len(layers) if "glm4_moe" in model[0].parent.name else 0)
    assert manifest.unfused == {}


@pytest.mark.parametrize("quantize", tiered(("int4", "int8"), ("int4",)))
def test_a_request_has_the_same_bits_at_any_load(quantize: str, store: Path, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint("qwen3_moe", tmp_path / "model", num_experts=8, num_experts_per_tok=3)
    check_any_load(build_artifact(checkpoint, tmp_path / "artifact", store, quantize=quantize))


def test_a_gguf_file_of_several_formats_keeps_them(store: Path, tmp_path: Path) -> None:
    """gate in MXFP4 and up in Q8_0 are one product; biases, which GGUF has apart, too."""
    types = {"gate": "MXFP4", "up": "Q8_0", "down": "Q5_0"}

    def type_of(tensor: str) -> str:
        return next((type for part, type in types.items() if f"ffn_{part}_exps" in tensor), "F32")

    _, file = write_twins("gpt_oss", tmp_path / "twins", quantization=type_of)
    artifact = build_artifact(file, tmp_path / "artifact", store)
    formats = {name: info.format for name, info in load_manifest(artifact).weights.items()}
    assert formats["layers.0.mlp.experts.gate+up.weight"] == "mxfp4:640+q8_0:640"
    assert formats["layers.0.mlp.experts.down.weight"] == "q5_0"
    assert formats["layers.0.mlp.router.weight"] == "f32"
    assert answers(artifact, PROMPTS[:3]) == [answers(artifact, [prompt])[0] for prompt in PROMPTS[:3]]


def test_experts_that_no_panel_holds_are_refused(tmp_path: Path, store: Path) -> None:
    checkpoint = write_tiny_checkpoint("qwen3_moe", tmp_path / "model", moe_intermediate_size=40)
    with pytest.raises(BuildError, match="group_experts matched nothing"):
        build(BuildOptions(model=str(checkpoint), output=tmp_path / "artifact", store=store))

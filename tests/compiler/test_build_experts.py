"""Mixtures of experts as whole artifacts: against transformers, and the same bits at any load."""

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

# Softmax with a shared expert behind a gate; softmax of the chosen, biases, clamps; sigmoid with groups, a bias and dense layers.
FAMILIES = ("qwen2_moe", "gpt_oss", "glm4_moe")
GENERATOR = torch.Generator().manual_seed(1)
PROMPTS = [torch.randint(3, GENERIC["vocab_size"], (length,), generator=GENERATOR).tolist() for length in (60, 1, 33, 90, 7, 21)]
GREEDY = Params(temperature=0, max_tokens=24, logprobs=3, ignore_eos=True)


@pytest.fixture(scope="module", params=tiered(FAMILIES, ("glm4_moe",)))
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


def test_every_layer_with_experts_was_grouped(model: tuple[Path, Path]) -> None:
    manifest = load_manifest(model[1])
    matches = {report.name: report.matches for report in manifest.fusion}
    layers = {name.split(".")[1] for name in manifest.weights if ".experts." in name}
    assert matches["route_experts"] == matches["group_experts"] == len(layers) > 0
    assert manifest.unfused == {}


def answers(artifact: Path, prompts: list[list[int]], **options: Any) -> list[tuple[list[int], Any]]:
    with LLM(artifact, **options) as llm:
        return [(completion.tokens, completion.logprobs) for completion in llm.generate(prompts, GREEDY)]


@pytest.mark.parametrize("quantize", tiered(("int4", "int8"), ("int4",)))
def test_a_request_has_the_same_bits_at_any_load(quantize: str, store: Path, tmp_path: Path) -> None:
    """Alone; with others; in chunks of a few tokens; with so little memory that some are preempted; with one thread; twice, so that
    prefixes are found again."""
    checkpoint = write_tiny_checkpoint("qwen3_moe", tmp_path / "model", num_experts=8, num_experts_per_tok=3)
    artifact = tmp_path / "artifact"
    build(BuildOptions(model=str(checkpoint), output=artifact, store=store, quantize=quantize))
    with LLM(artifact) as llm:
        alone = [llm.generate([prompt], GREEDY)[0] for prompt in PROMPTS]
    expected = [(completion.tokens, completion.logprobs) for completion in alone]
    assert answers(artifact, PROMPTS) == expected
    assert answers(artifact, PROMPTS, max_num_seqs=8, max_batch_tokens=8) == expected
    assert answers(artifact, PROMPTS, threads=1) == expected
    assert answers(artifact, PROMPTS * 2) == expected * 2


def test_a_gguf_file_of_several_formats_keeps_them(store: Path, tmp_path: Path) -> None:
    """gate in MXFP4 and up in Q8_0 are one product; biases, which GGUF has apart, too."""
    types = {"gate": "MXFP4", "up": "Q8_0", "down": "Q5_0"}

    def type_of(tensor: str) -> str:
        return next((type for part, type in types.items() if f"ffn_{part}_exps" in tensor), "F32")

    _, file = write_twins("gpt_oss", tmp_path / "twins", quantization=type_of)
    build(BuildOptions(model=str(file), output=tmp_path / "artifact", store=store))
    formats = {name: info.format for name, info in load_manifest(tmp_path / "artifact").weights.items()}
    assert formats["layers.0.mlp.experts.gate+up.weight"] == "mxfp4:640+q8_0:640"
    assert formats["layers.0.mlp.experts.down.weight"] == "q5_0"
    assert formats["layers.0.mlp.router.weight"] == "f32"
    alone = [answers(tmp_path / "artifact", [prompt])[0] for prompt in PROMPTS[:3]]
    assert answers(tmp_path / "artifact", PROMPTS[:3]) == alone


def test_experts_that_no_panel_holds_are_refused(tmp_path: Path, store: Path) -> None:
    checkpoint = write_tiny_checkpoint("qwen3_moe", tmp_path / "model", moe_intermediate_size=40)
    with pytest.raises(BuildError, match="group_experts matched nothing"):
        build(BuildOptions(model=str(checkpoint), output=tmp_path / "artifact", store=store))

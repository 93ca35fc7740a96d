"""The demo model, unquantized, against `transformers` on the same numbers: the same greedy words."""

from pathlib import Path

import transformers
from against_transformers import PROMPTS, TOKENS, choices_along, greedy_answers, write_unquantized

from engine.artifacts import load_manifest
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.compiler.verify import Comparison, compare


def test_greedy_tokens_equal_those_of_transformers(smollm2_gguf: Path, store: Path, tmp_path: Path) -> None:
    unquantized = write_unquantized(smollm2_gguf, tmp_path / "smollm2-f32")
    artifact = tmp_path / "artifact"
    build(BuildOptions(model=str(unquantized), output=artifact, store=store))
    assert {weight.format for weight in load_manifest(artifact).weights.values()} == {"f32"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(unquantized)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    answers = greedy_answers(artifact, prompts)
    assert [len(answer) for answer in answers] == [TOKENS] * len(prompts)
    assert answers == choices_along(unquantized, prompts, answers)


def test_carried_over_blocks_lose_only_what_8_bit_activations_lose(smollm2: Path, smollm2_gguf: Path) -> None:
    """Against the same blocks dequantized and run in float32."""
    comparison = compare(smollm2, str(smollm2_gguf))
    assert isinstance(comparison, Comparison)
    assert comparison.positions > 100
    assert comparison.kl_mean < 0.01
    assert comparison.top1 > 0.9

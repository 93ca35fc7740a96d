"""The demo model, unquantized, against `transformers` on the same numbers: the same greedy words."""

from pathlib import Path

import pytest
import torch
import transformers

from engine.artifacts import load_manifest
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.compiler.verify import compare
from engine.options.runtime import RuntimeOptions
from engine.protocol import SamplingParams, Submit
from engine.runtime.core import EngineCore

PROMPTS = (
    "The capital of France is",
    "Write a haiku about rain.\n",
    "def quicksort(values):\n",
    "In 1969, the first people walked on the Moon. They",
    "To make pancakes you need",
    "My favourite thing about winter is",
    "The opposite of hot is",
    "List three animals that live in the sea:\n1.",
)
TOKENS = 64


@pytest.fixture(scope="module")
def unquantized(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF's numbers, dequantized, as a Hugging Face checkpoint in float32, tokenizer included."""
    directory = tmp_path_factory.mktemp("unquantized") / "smollm2-f32"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32)
    del loaded.config.quantization_config  # its weights are plain float32 by now
    plain = transformers.AutoModelForCausalLM.from_config(loaded.config)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name).save_pretrained(directory)
    return directory


@torch.no_grad()
def choices_along(checkpoint: Path, prompts: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    """What `transformers` would choose at every place of the answers, the end of the text left out.

    Where these are the answers themselves, they are its greedy ones: by induction over their tokens.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    choices = []
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = model(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
        logits[:, model.generation_config.eos_token_id] = -torch.inf
        choices.append(logits.argmax(-1).tolist())
    return choices


def test_greedy_tokens_equal_those_of_transformers(unquantized: Path, store: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    build(BuildOptions(model=str(unquantized), output=artifact, store=store))
    assert {weight.format for weight in load_manifest(artifact).weights.values()} == {"f32"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(unquantized)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    core = EngineCore.load(artifact, RuntimeOptions(kv_memory=512 << 20), on_phase=lambda name, seconds: None)
    answers: dict[str, list[int]] = {str(index): [] for index in range(len(prompts))}
    for id, prompt in zip(answers, prompts, strict=True):
        core.submit(Submit(id=id, prompt=prompt, params=SamplingParams(max_tokens=TOKENS, min_tokens=TOKENS, temperature=0.0)))
    while core.has_work():
        for output in core.step().outputs:
            answers[output.id] += output.tokens
    found = list(answers.values())
    assert [len(answer) for answer in found] == [TOKENS] * len(prompts)
    assert found == choices_along(unquantized, prompts, found)


def test_carried_over_blocks_lose_only_what_8_bit_activations_lose(smollm2: Path, smollm2_gguf: Path) -> None:
    """Against the same blocks dequantized and run in float32."""
    comparison = compare(smollm2, str(smollm2_gguf))
    assert comparison.positions > 100
    assert comparison.kl_mean < 0.01
    assert comparison.top1 > 0.9

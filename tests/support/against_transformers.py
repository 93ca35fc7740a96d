"""Real models served in float32 and `transformers` on the same numbers: do they choose the same words?"""

from pathlib import Path

import torch
import transformers

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


def write_unquantized(gguf: Path, directory: Path) -> Path:
    """The file's numbers, dequantized, as a Hugging Face checkpoint in float32, tokenizer included."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del loaded.config.quantization_config  # its weights are plain float32 by now
    plain = transformers.AutoModelForCausalLM.from_config(loaded.config)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)
    return directory


def greedy_answers(artifact: Path, prompts: list[list[int]]) -> list[list[int]]:
    """TOKENS tokens after every prompt, served together; the end of the text is never chosen."""
    core = EngineCore.load(artifact, RuntimeOptions(kv_memory=512 << 20), on_phase=lambda name, seconds: None)
    answers: dict[str, list[int]] = {str(index): [] for index in range(len(prompts))}
    for id, prompt in zip(answers, prompts, strict=True):
        core.submit(Submit(id=id, prompt=prompt, params=SamplingParams(max_tokens=TOKENS, min_tokens=TOKENS, temperature=0.0)))
    while core.has_work():
        for output in core.step().outputs:
            answers[output.id] += output.tokens
    return list(answers.values())


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

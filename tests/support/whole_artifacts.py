"""What whole artifacts of random checkpoints must do, whatever the model: agree with transformers, and give a request the same bits at
any load."""

from pathlib import Path
from typing import Any

import torch
from families import GENERIC, reference_logits, write_tiny_checkpoint

from engine.artifacts import load_manifest
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.compiler.run_artifact import artifact_logits
from engine.server.llm import LLM, Params

PROMPTS: list[list[int]] = [
    torch.randint(3, GENERIC["vocab_size"], (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (60, 1, 33, 90, 7, 21)
]
GREEDY = Params(temperature=0, max_tokens=72, logprobs=3, ignore_eos=True)
_FEW_BLOCKS = 8
"""Of 32 tokens: the longest request needs six, all of them 24."""


def build_tiny(name: str, directory: Path, store: Path, **overrides: Any) -> tuple[Path, Path]:
    """A random checkpoint of a family and its artifact. overrides: of the family's settings."""
    checkpoint = write_tiny_checkpoint(name, directory / "model", **overrides)
    return checkpoint, build_artifact(checkpoint, directory / "artifact", store)


def build_artifact(model: Path, artifact: Path, store: Path, **options: Any) -> Path:
    build(BuildOptions(model=str(model), output=artifact, store=store, **options))
    return artifact


def check_every_token(checkpoint: Path, artifact: Path) -> None:
    """Logits are those of transformers, computed at once and token by token.

    Two float32 computations of one function differ by at most the sum of their own errors; ours may lose three times what theirs loses.
    """
    tokens = PROMPTS[0]
    expected, rounding = reference_logits(checkpoint, tokens)
    (steps,) = artifact_logits(artifact, [tokens], last_only=False)
    (last,) = artifact_logits(artifact, [tokens], last_only=True)
    assert float((steps - expected).abs().max()) <= 4 * max(rounding, 1e-6 * float(expected.abs().max()))
    assert torch.equal(steps[-1], last[0])


def check_any_load(artifact: Path) -> None:
    """Tokens and logprobs of requests alone are those with others; in chunks of a few tokens; with so little memory that some are
    preempted; with one thread; twice, so that prefixes are found again."""
    with LLM(artifact) as llm:
        expected = [answer for prompt in PROMPTS for answer in _answers(llm, [prompt])]
    assert answers(artifact, PROMPTS) == expected
    assert answers(artifact, PROMPTS, max_num_seqs=8, max_batch_tokens=8) == expected
    assert answers(artifact, PROMPTS, threads=1) == expected
    assert answers(artifact, PROMPTS * 2) == expected * 2
    with LLM(artifact, kv_memory=_FEW_BLOCKS * sum(group.bytes_per_block for group in load_manifest(artifact).caches)) as llm:
        assert _answers(llm, PROMPTS) == expected
        assert llm._fleet.stats.preemptions_total > 0


def answers(artifact: Path, prompts: list[list[int]], **options: Any) -> list[tuple[list[int], Any]]:
    """Tokens and logprobs of each prompt, all asked at once. options: of LLM."""
    with LLM(artifact, **options) as llm:
        return _answers(llm, prompts)


def _answers(llm: LLM, prompts: list[list[int]]) -> list[tuple[list[int], Any]]:
    return [(completion.tokens, completion.logprobs) for completion in llm.generate(prompts, GREEDY)]

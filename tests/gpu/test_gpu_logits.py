"""What an artifact computes on the GPU against eager PyTorch with the same weights on the same GPU."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gpu_artifacts import Built, rows
from gpu_steps import BLOCK_SIZE, Chunk, step_inputs
from numpy.typing import NDArray

from engine.runtime.cuda.executor import CudaExecutor

LENGTHS = [1, 2, 7, 16, 300, 2048]
SMALL_LENGTHS = [1, 2, 7, 16, 40]
DECODED = 3
MARGIN = 4
"""How much further from float32 than eager bfloat16 the artifact may be: it rounds at other places."""
Logits = NDArray[np.float32]


class Eager:
    """The model in transformers, in float32 and with everything in bfloat16."""

    def __init__(self, checkpoint: Path, device: str) -> None:
        import torch
        import transformers

        self._device = device
        self._models = [
            transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).to(device).eval()
            for dtype in (torch.float32, torch.bfloat16)
        ]

    def __call__(self, tokens: list[int]) -> tuple[Logits, float]:
        """Logits [len(tokens), V] in float32, and how far from them those in bfloat16 are at most."""
        import torch

        ids = torch.tensor([tokens], device=self._device)
        with torch.no_grad():
            exact, rounded = (model(ids).logits[0].float().cpu().numpy() for model in self._models)
        return exact, float(np.abs(exact - rounded).max())


@pytest.fixture(scope="module")
def eager(checkpoint: Path, stand_in: bool) -> Iterator[Eager]:
    yield Eager(checkpoint, "cpu" if stand_in else "cuda:0")
    if not stand_in:
        import torch

        torch.cuda.empty_cache()


@pytest.fixture
def executor(built: Built, load: Callable[..., CudaExecutor], stand_in: bool) -> CudaExecutor:
    return load(built, max_num_seqs=8, max_batch_tokens=64 if stand_in else 2048)


def tokens_of(count: int, seed: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(3, 300, count).tolist()
    return tokens


def blocks_of(count: int, first: int) -> list[int]:
    """Blocks for so many tokens, not in order."""
    return list(range(first, first - count // BLOCK_SIZE - 1, -1))


@pytest.fixture(params=LENGTHS)
def length(request: pytest.FixtureRequest, stand_in: bool) -> int:
    """Tokens of a prompt. The interpreter gets others."""
    index = LENGTHS.index(request.param)
    if stand_in and index >= len(SMALL_LENGTHS):
        pytest.skip("too long for the interpreter")
    return SMALL_LENGTHS[index] if stand_in else int(request.param)


def test_a_prompt_and_what_follows(executor: CudaExecutor, eager: Eager, length: int) -> None:
    """One step for the whole prompt, then tokens one by one through the graph of a single sequence."""
    tokens = tokens_of(length + DECODED, seed=length)
    blocks = blocks_of(len(tokens), first=80)
    exact, error = eager(tokens)
    (last,) = rows(executor, step_inputs([Chunk(tokens[:length], 0, blocks)]))
    worst = [float(np.abs(last - exact[length - 1]).max())]
    for known in range(length, len(tokens)):
        (row,) = rows(executor, step_inputs([Chunk(tokens[: known + 1], known, blocks)]))
        worst.append(float(np.abs(row - exact[known]).max()))
    assert max(worst) <= MARGIN * error, worst


def test_sequences_of_all_kinds_in_one_step(executor: CudaExecutor, eager: Eager, stand_in: bool) -> None:
    """Prompts, a continued prompt and decoding sequences together; then all of them decode, in a graph with a row to spare."""
    lengths = [5, 20, 12, 9] if stand_in else [5, 33, 700, 129, 64, 1, 310]
    prompts = [tokens_of(length + 2, seed) for seed, length in enumerate(lengths)]
    places = [blocks_of(len(prompt), first=25 * (index + 1)) for index, prompt in enumerate(prompts)]
    known = [len(prompt) // 2 if index % 2 else 0 for index, prompt in enumerate(prompts)]
    begun = [Chunk(p[:k], 0, b) for p, k, b in zip(prompts, known, places, strict=True) if k]
    rows(executor, step_inputs(begun))
    mixed = rows(executor, step_inputs([Chunk(p[:-1], k, b) for p, k, b in zip(prompts, known, places, strict=True)]))
    decoded = rows(executor, step_inputs([Chunk(p, len(p) - 1, b) for p, b in zip(prompts, places, strict=True)]))
    for index, prompt in enumerate(prompts):
        exact, error = eager(prompt)
        assert np.abs(mixed[index] - exact[-2]).max() <= MARGIN * error
        assert np.abs(decoded[index] - exact[-1]).max() <= MARGIN * error


def test_the_same_step_gives_the_same_bits(executor: CudaExecutor, stand_in: bool) -> None:
    """Again, and beside other neighbours in the same graph."""
    long, other = (tokens_of(40 if stand_in else 700, seed) for seed in (1, 2))
    blocks, others = blocks_of(len(long), first=30), blocks_of(len(other), first=60)
    first = rows(executor, step_inputs([Chunk(long, 0, blocks)]))
    again = rows(executor, step_inputs([Chunk(long, 0, blocks)]))
    assert np.array_equal(first, again)
    rows(executor, step_inputs([Chunk(other, 0, others)]))
    last = [Chunk(long, len(long) - 1, blocks), Chunk(other, len(other) - 1, others), Chunk(other[:9], 8, others)]
    alone = rows(executor, step_inputs([last[0], last[2], last[2]]))
    together = rows(executor, step_inputs(last))
    assert np.array_equal(alone[0], together[0])


@pytest.mark.parametrize("quantize", ["int8", "int4", "fp8", "fp8-block"])
def test_quantized_weights(quantize: str, checkpoint: Path, stand_in: bool, load: Callable[..., CudaExecutor], tmp_path: Path) -> None:
    """The build recorded what the references compute; loading compares the shortest prompt with it, this all of them."""
    from gpu_artifacts import build

    from engine.runtime.probe import whole_prompt

    if stand_in and quantize.startswith("fp8"):
        pytest.skip("rows of the model for the interpreter are too short")
    executor = load(build(checkpoint, tmp_path, "--quantize", quantize), max_batch_tokens=64)
    for prompt in executor.manifest.probe.prompts:
        if len(prompt.tokens) <= 64:
            (row,) = rows(executor, whole_prompt(prompt.tokens, executor.manifest.caches))
            difference = np.abs(row[prompt.top_tokens] - np.array(prompt.top_logits)).max()
            assert difference <= 3e-2 * np.abs(prompt.top_logits).max()

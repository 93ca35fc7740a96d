"""Tokens that the step's graph draws, and tokens that it cannot: the same request gets the same ones, whatever is beside it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import FakeCuda, fake_cuda_installed
from fake_executor import solo as solo_without_draws
from toy_gpu_artifact import BLOCK_SIZE, ToyKernels, solo, write_toy_artifact

from engine.artifacts import Manifest
from engine.options.runtime import RuntimeOptions
from engine.protocol import Output, SamplingParams, Submit, TokenRules
from engine.runtime.core import EngineCore
from engine.runtime.cuda.executor import CudaExecutor
from engine.runtime.loading import load_executor
from engine.runtime.sampling.device_sampling import plan_draws
from engine.runtime.sampling.sampler import NOT_FINITE
from engine.runtime.scheduler import Chunk
from engine.runtime.sequence import Sequence as Tokens

NUM_BLOCKS = 64
PROMPT = [3, 1, 4]


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with fake_cuda_installed() as fake:
        yield fake


@pytest.fixture
def toy(fake: FakeCuda, tmp_path: Path) -> tuple[Manifest, ToyKernels]:
    manifest = write_toy_artifact(tmp_path / "toy")
    return manifest, ToyKernels(fake, tmp_path / "toy", manifest, num_blocks=NUM_BLOCKS)


@pytest.fixture
def kernels(toy: tuple[Manifest, ToyKernels]) -> ToyKernels:
    return toy[1]


@pytest.fixture
def executor(toy: tuple[Manifest, ToyKernels], tmp_path: Path) -> Iterator[CudaExecutor]:
    manifest, kernels = toy
    kv_memory = NUM_BLOCKS * manifest.caches[0].bytes_per_block
    executor = load_executor(tmp_path / "toy", kv_memory=kv_memory, max_num_seqs=8, max_batch_tokens=32)
    assert isinstance(executor, CudaExecutor)
    kernels.drawn.clear()
    yield executor
    executor.close()


def params(**changes: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 12, "temperature": 1.0, "seed": 7, **changes})  # type: ignore[arg-type]


def run(executor: CudaExecutor, given: Sequence[SamplingParams], prompt: Sequence[int] = PROMPT) -> list[list[Output]]:
    """What each of these requests got, all submitted at once."""
    core = EngineCore(executor, RuntimeOptions(max_num_seqs=8, max_batch_tokens=32))
    for index, wanted in enumerate(given):
        core.submit(Submit(str(index), list(prompt), wanted))
    outputs: list[list[Output]] = [[] for _ in given]
    while core.has_work():
        for output in core.step().outputs:
            outputs[int(output.id)].append(output)
    return outputs


def tokens(outputs: Sequence[Output]) -> list[int]:
    assert all(output.error is None for output in outputs)
    return [token for output in outputs for token in output.tokens]


PLAIN = {
    "temperature": params(),
    "cold": params(temperature=1e-5),
    "hot": params(temperature=float("inf")),
    "top_k": params(top_k=5),
    "the best one": params(top_k=1),
    "more than there are": params(top_k=2**40),
    "top_p": params(top_p=0.6),
    "no mass": params(top_p=0.0),
    "min_p": params(min_p=0.2),
    "as likely as the best": params(min_p=1.0),
    "all": params(temperature=0.7, top_k=20, top_p=0.9, min_p=0.05),
}
NOT_PLAIN = {
    "repetition": params(repetition_penalty=1.2),
    "presence": params(presence_penalty=0.5),
    "frequency": params(frequency_penalty=0.5),
    "bad words": params(bad_words=((3, 4),)),
    "bias": params(token_rules=TokenRules.of({3: 5.0})),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_draw_is_the_graphs(executor: CudaExecutor, kernels: ToyKernels, name: str) -> None:
    (alone,) = run(executor, [PLAIN[name]])
    assert tokens(alone) == solo(PROMPT, PLAIN[name])
    assert kernels.drawn == [[0]] * 12
    assert [tokens(outputs) for outputs in run(executor, [PLAIN[name]])] == [tokens(alone)], "a seed gives its tokens again"


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_needs_more_is_not(executor: CudaExecutor, kernels: ToyKernels, name: str) -> None:
    assert tokens(run(executor, [NOT_PLAIN[name]])[0]) == solo_without_draws(PROMPT, NOT_PLAIN[name])
    assert kernels.drawn == [[]] * 12


def test_beside_any_others_a_request_gets_what_it_gets_alone(executor: CudaExecutor, kernels: ToyKernels) -> None:
    greedy = [params(temperature=0.0), params(temperature=0.0, logprobs=2)]
    mixture = [*PLAIN.values(), *greedy, *NOT_PLAIN.values(), params(logprobs=3)]
    random = np.random.default_rng(0)
    for _ in range(4):
        order = random.permutation(len(mixture))
        together = run(executor, [mixture[index] for index in order])
        for index, outputs in zip(order, together, strict=True):
            assert tokens(outputs) == solo(PROMPT, mixture[index])
    assert any(0 < len(rows) < total for rows, (_, _, total) in zip(kernels.drawn, kernels.steps[-len(kernels.drawn) :], strict=True))


def test_greedy_steps_draw_nothing(executor: CudaExecutor, kernels: ToyKernels) -> None:
    run(executor, [params(temperature=0.0)] * 3)
    assert not any(kernels.drawn)


def test_logprobs_change_no_token(executor: CudaExecutor) -> None:
    plain, told = run(executor, [params(top_p=0.9), params(top_p=0.9, logprobs=2)])
    assert tokens(plain) == tokens(told)
    assert all(len(output.logprobs[0].top) == 2 for output in told)
    assert all(output.logprobs[0].logprob <= output.logprobs[0].top[0][1] < 0 for output in told)


def test_the_way_changes_with_min_tokens(executor: CudaExecutor, kernels: ToyKernels) -> None:
    """Until then the stop tokens must be kept out, which the graph cannot."""
    wanted = params(min_tokens=5, stop_token_ids=(31,))
    expected = solo(PROMPT, wanted, stop_ids=frozenset({31}))
    assert len(expected) > 5
    assert tokens(run(executor, [wanted])[0]) == expected
    assert kernels.drawn == [[]] * 5 + [[0]] * (len(expected) - 5)


def test_a_prompt_in_chunks_is_drawn_for_once(executor: CudaExecutor, kernels: ToyKernels) -> None:
    prompt = list(range(10)) * 5
    assert tokens(run(executor, [params(max_tokens=2)], prompt)[0]) == solo(prompt, params(max_tokens=2))
    assert kernels.drawn == [[], [0], [0]]


def test_an_answer_is_continued_with_its_next_number(executor: CudaExecutor) -> None:
    whole = solo(PROMPT, params())
    core = EngineCore(executor, RuntimeOptions(max_num_seqs=8, max_batch_tokens=32))
    core.submit(Submit("again", PROMPT, params(), generated=whole[:5]))
    rest: list[int] = []
    while core.has_work():
        rest += [token for output in core.step().outputs for token in output.tokens]
    assert rest == whole[5:]


def test_logits_that_are_not_finite(executor: CudaExecutor, kernels: ToyKernels) -> None:
    """Told of every way to choose; those beside them go on."""
    kernels.poison = 9
    core = EngineCore(executor, RuntimeOptions(max_num_seqs=8, max_batch_tokens=32))
    for index, wanted in enumerate([params(), params(logprobs=1), params(temperature=0.0), NOT_PLAIN["bias"]]):
        core.submit(Submit(f"{index}", [1, 9], wanted))
    core.submit(Submit("whole", PROMPT, params(max_tokens=1)))
    outputs = {output.id: output for output in core.step().outputs}
    assert [outputs[f"{index}"].error for index in range(4)] == [NOT_FINITE] * 4
    assert outputs["whole"].tokens == solo(PROMPT, params(max_tokens=1))


def test_numbers_stay_below_one_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.runtime.sampling.device_sampling._uniform", lambda seed, index: 1 - 2.0**-53)
    wanted = params(top_k=2**40, temperature=1e300)
    sequence = Tokens(id="", prompt=PROMPT, generated=[], params=wanted, stop_ids=frozenset(), max_length=9, block_size=BLOCK_SIZE, held=[])
    draws = plan_draws([Chunk(sequence, 0, 1, 0, False), Chunk(sequence, 1, 2, 1, True)])
    assert draws is not None
    assert draws.rows.tolist() == [0], "the first that chooses"
    assert draws.uniform[0] < 1
    assert np.isfinite(draws.temperature[0])
    assert draws.top_k.tolist() == [2**31 - 1]
    assert plan_draws([Chunk(sequence, 0, 1, 0, False)]) is None

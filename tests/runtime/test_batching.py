"""What a request is batched with changes nothing: tokens and logprobs are the same to the bit."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from engine.artifacts import load_manifest
from engine.options.runtime import RuntimeOptions
from engine.protocol import HEADER_BYTES, Drain, Output, SamplingParams, StepDone, Submit, body_length, decode_to_server, encode
from engine.runtime.core import EngineCore
from engine.runtime.executor import Executor
from engine.runtime.process.channel import Channel
from engine.runtime.process.serving_loop import serve

Answer = list[tuple[int, float, list[tuple[int, float]]]]
PROMPTS = (
    "The three laws of robotics are",
    "def fibonacci(n):",
    "Once upon a time, in a village by the sea, there lived a fisherman who could not swim. Every morning he",
    "2 + 2 =",
    "Dear hiring manager,\n\nI am writing to apply for the position of lighthouse keeper. For eleven years I have",
    "Q: Why is the sky blue?\nA:",
    "La capitale de la France est",
    "The following is a list of elements, each with its symbol and number: hydrogen H 1, helium He 2, lithium Li 3, beryllium",
)


@pytest.fixture(scope="module", params=["quantized", "float32"])
def artifact(request: pytest.FixtureRequest) -> Path:
    """The demo model with its 4-bit weights, and a random one in float32 whose sizes fill no vector."""
    path: Path = request.getfixturevalue("smollm2" if request.param == "quantized" else "tiny_artifact")
    return path


def load(artifact: Path, threads: int | None = None) -> Executor:
    return Executor.load(artifact, kv_memory=64 * load_manifest(artifact).caches[0].bytes_per_block, threads=threads)


@pytest.fixture(scope="module")
def executor(artifact: Path) -> Executor:
    return load(artifact)


@pytest.fixture(scope="module")
def prompts(executor: Executor, smollm2: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer" / "tokenizer.json"))
    vocab_size = executor.manifest.model.vocab_size
    return [[token % vocab_size for token in tokenizer.encode(prompt).ids] for prompt in PROMPTS]


def requests(prompts: list[list[int]]) -> Iterator[Submit]:
    """Half greedy, half sampled with a seed; all of different lengths."""
    for index, prompt in enumerate(prompts):
        sampled: dict[str, Any] = (
            {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "repetition_penalty": 1.1} if index % 2 else {"temperature": 0.0}
        )
        params = SamplingParams(max_tokens=64 + index, seed=1000 + index, logprobs=3, ignore_eos=True, **sampled)
        yield Submit(id=str(index), prompt=prompt, params=params)


def run(executor: Executor, submits: list[Submit], *, num_blocks: int | None = None, **options: Any) -> tuple[dict[str, Answer], int]:
    """Everything each request got, and how often one was preempted."""
    core = EngineCore(_Limited(executor, num_blocks), RuntimeOptions(**options))
    answers: dict[str, Answer] = {submit.id: [] for submit in submits}
    for submit in submits:
        core.submit(submit)
    preemptions = 0
    while core.has_work():
        done = core.step()
        core.check()
        preemptions = done.stats.preemptions_total
        for output in done.outputs:
            _collect(answers[output.id], output)
    return answers, preemptions


class _Limited:
    """The executor with a smaller cache, so that one load serves every case."""

    def __init__(self, executor: Executor, num_blocks: int | None) -> None:
        self.manifest = executor.manifest
        self.pools = {name: num_blocks or blocks for name, blocks in executor.pools.items()}
        self.step, self.choose, self.can_draw = executor.step, executor.choose, executor.can_draw


def _collect(answer: Answer, output: Output) -> None:
    assert output.error is None
    answer.extend((token, logprob.logprob, logprob.top) for token, logprob in zip(output.tokens, output.logprobs, strict=True))


@pytest.fixture(scope="module")
def alone(executor: Executor, prompts: list[list[int]]) -> dict[str, Answer]:
    """Each request by itself."""
    answers: dict[str, Answer] = {}
    for submit in requests(prompts):
        answers |= run(executor, [submit])[0]
    assert all(len(answer) == 64 + int(id) for id, answer in answers.items())
    return answers


def test_in_a_batch_of_eight(executor: Executor, prompts: list[list[int]], alone: dict[str, Answer]) -> None:
    assert run(executor, list(requests(prompts)))[0] == alone


def test_in_the_workers_loop(executor: Executor, prompts: list[list[int]], alone: dict[str, Answer]) -> None:
    """Where each step is planned while the one before it is computed."""
    ours, theirs = socket.socketpair()
    answers: dict[str, Answer] = {id: [] for id in alone}
    with ours, theirs, ThreadPoolExecutor() as pool:
        core = EngineCore(executor, RuntimeOptions(max_num_seqs=5))
        serving = pool.submit(serve, core, Channel(theirs), Path("no artifact"))
        ours.sendall(b"".join(map(encode, requests(prompts))) + encode(Drain()))
        serving.add_done_callback(lambda _: theirs.shutdown(socket.SHUT_WR))
        stream = ours.makefile("rb")
        while header := stream.read(HEADER_BYTES):
            message = decode_to_server(stream.read(body_length(header)))
            for output in message.outputs if isinstance(message, StepDone) else ():
                _collect(answers[output.id], output)
        serving.result()
    assert answers == alone


@pytest.mark.parametrize("max_batch_tokens", [8, 11, 33])
def test_chunked_prefill(executor: Executor, prompts: list[list[int]], alone: dict[str, Answer], max_batch_tokens: int) -> None:
    answers, _ = run(executor, list(requests(prompts)), max_batch_tokens=max_batch_tokens, max_num_seqs=8)
    assert answers == alone


def test_after_preemption(executor: Executor, prompts: list[list[int]], alone: dict[str, Answer]) -> None:
    answers, preemptions = run(executor, list(requests(prompts)), num_blocks=8)
    assert preemptions > 0
    assert answers == alone


def test_with_one_thread(artifact: Path, prompts: list[list[int]], alone: dict[str, Answer]) -> None:
    assert run(load(artifact, threads=1), list(requests(prompts)))[0] == alone


def test_resumed_by_another_worker(executor: Executor, prompts: list[list[int]], alone: dict[str, Answer]) -> None:
    """What the server does after a worker died: the same request with the tokens it already has."""
    resumed = [
        Submit(id=submit.id, prompt=submit.prompt, params=submit.params, generated=[token for token, _, _ in alone[submit.id][:7]])
        for submit in requests(prompts)
    ]
    answers, _ = run(executor, resumed)
    assert answers == {id: answer[7:] for id, answer in alone.items()}


def test_with_a_prefix_from_the_cache(executor: Executor, prompts: list[list[int]]) -> None:
    """The second time, all but the last block of the prompt is taken from the first time."""
    prompt = [token for prompt in prompts for token in prompt]
    params = SamplingParams(max_tokens=20, temperature=0.8, seed=5, logprobs=3, ignore_eos=True)
    core = EngineCore(executor, RuntimeOptions())
    answers: list[Answer] = []
    cached: list[int] = []
    for id in ("first", "second"):
        core.submit(Submit(id=id, prompt=prompt, params=params))
        answers.append([])
        while core.has_work():
            for output in core.step().outputs:
                _collect(answers[-1], output)
                cached.append(output.cached_tokens)
    assert answers[0] == answers[1]
    assert cached == [0] * 20 + [(len(prompt) - 1) // 32 * 32] * 20
    assert cached[-1] >= 64

"""What a request is batched with changes nothing: tokens and logprobs are the same to the bit."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from engine.artifacts import load_manifest
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.options.runtime import RuntimeOptions
from engine.protocol import (
    HEADER_BYTES,
    Drain,
    Output,
    PromptLogprob,
    SamplingParams,
    StepDone,
    Submit,
    body_length,
    decode_to_server,
    encode,
)
from engine.runtime.core import EngineCore
from engine.runtime.executor import Executor
from engine.runtime.process.channel import Channel
from engine.runtime.process.serving_loop import serve

Answer = list[tuple[int, float, list[tuple[int, float]]] | PromptLogprob]
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


@pytest.fixture(scope="module", params=["quantized", "float32", "float16", "bfloat16", "int8"])
def artifact(request: pytest.FixtureRequest, tiny_checkpoint: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with its 4-bit weights, and a random one in float32 whose sizes fill no vector, with a cache of each dtype."""
    if request.param == "quantized":
        smollm2: Path = request.getfixturevalue("smollm2")
        return smollm2
    path = tmp_path_factory.mktemp("batching") / "artifact"
    build(BuildOptions(model=str(tiny_checkpoint), output=path, kv_dtype=request.param, store=store))
    assert load_manifest(path).caches[0].dtype == request.param
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
    """Half greedy, half sampled with a seed; all of different lengths. The prompts of some are scored."""
    for index, prompt in enumerate(prompts):
        sampled: dict[str, Any] = (
            {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "repetition_penalty": 1.1} if index % 2 else {"temperature": 0.0}
        )
        scored = None if index % 3 else 2
        params = SamplingParams(max_tokens=64 + index, seed=1000 + index, logprobs=3, ignore_eos=True, prompt_logprobs=scored, **sampled)
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
        self.step, self.routes, self.choose, self.can_draw = executor.step, executor.routes, executor.choose, executor.can_draw


def _collect(answer: Answer, output: Output) -> None:
    assert output.error is None
    answer.extend(output.prompt_logprobs)
    answer.extend((token, logprob.logprob, logprob.top) for token, logprob in zip(output.tokens, output.logprobs, strict=True))


def scored(id: str, prompts: list[list[int]]) -> int:
    """How many of a request's prompt tokens are."""
    return 0 if int(id) % 3 else len(prompts[int(id)]) - 1


@pytest.fixture(scope="module")
def alone(executor: Executor, prompts: list[list[int]]) -> dict[str, Answer]:
    """Each request by itself."""
    answers: dict[str, Answer] = {}
    for submit in requests(prompts):
        answers |= run(executor, [submit])[0]
    assert all(len(answer) == scored(id, prompts) + 64 + int(id) for id, answer in answers.items())
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
    told = {id: min(scored(id, prompts), 5) + (0 if scored(id, prompts) else 7) for id in alone}
    resumed = [
        Submit(
            id=submit.id,
            prompt=submit.prompt,
            params=submit.params,
            generated=[item[0] for item in alone[submit.id][: told[submit.id]] if isinstance(item, tuple)],
            scored=min(scored(submit.id, prompts), told[submit.id]),
        )
        for submit in requests(prompts)
    ]
    answers, _ = run(executor, resumed)
    assert answers == {id: answer[told[id] :] for id, answer in alone.items()}


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


def test_a_prompt_is_scored_as_it_was_when_it_was_generated(executor: Executor, prompts: list[list[int]], alone: dict[str, Answer]) -> None:
    """To the bit: what came of a request, sent back as part of a prompt, and found in the cache."""
    submit = next(submit for submit in requests(prompts) if submit.id == "1")
    tokens = [item[0] for item in alone["1"] if isinstance(item, tuple)]
    whole = [*submit.prompt, *tokens]
    scored = SamplingParams(max_tokens=0, prompt_logprobs=3)
    answers, _ = run(executor, [submit, Submit(id="scored", prompt=whole, params=scored)], max_num_seqs=7)
    found = [item for item in answers["scored"] if isinstance(item, PromptLogprob)]
    assert len(found) == len(whole) - 1
    assert [(token, score.logprob, score.top) for token, score in zip(tokens, found[len(submit.prompt) - 1 :], strict=True)] == alone["1"]

"""`engine serve` on the GPU with OpenAI's client: the same tokens as the engine in this process gives."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gpu_artifacts import KV_MEMORY, SHAPE, Built, build
from serving_process import ServingProcess

from engine.options.runtime import RuntimeOptions
from engine.protocol import SamplingParams, Submit
from engine.runtime.core import EngineCore

OPTIONS: dict[str, Any] = {"max_num_seqs": 4, "max_batch_tokens": 64, "kv_memory": KV_MEMORY}
GREEDY: dict[str, Any] = {"temperature": 0.0}
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "seed": 7}
PROMPTS = [[11 + index, 40, 7 * index + 3, 99] for index in range(6)]


@pytest.fixture(scope="module")
def served(built: Built, stand_in: bool, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An artifact whose tokenizer has a text for every token, so that texts are as good as tokens."""
    if stand_in:
        return built
    import torch
    from random_checkpoints import VOCAB_SIZE, write_random_checkpoint

    directory = tmp_path_factory.mktemp("gpu-served")
    shape = {**SHAPE, "vocab_size": VOCAB_SIZE}
    return build(write_random_checkpoint("llama", directory / "model", dtype=torch.bfloat16, **shape), directory)


@pytest.fixture(scope="module")
def server(served: Built, stand_in: bool) -> Iterator[ServingProcess]:
    worker: Any = None
    if stand_in:
        from interpreted_gpu_worker import command

        worker = command(served.dump)
    with ServingProcess(served.artifact, worker_command=worker, **OPTIONS) as server:
        yield server.ready()


@pytest.fixture(scope="module")
def count(stand_in: bool) -> int:
    """Tokens of an answer."""
    return 4 if stand_in else 64


def ask(server: ServingProcess, prompt: list[int], count: int, **params: Any) -> Any:
    model = server.openai.models.list().data[0].id
    extra = {"ignore_eos": True}
    return server.openai.completions.create(model=model, prompt=prompt, max_tokens=count, extra_body=extra, **params)


def test_ready_after_phases_and_nothing_compiled(server: ServingProcess) -> None:
    assert server.http.get("/health").status_code == 200
    metrics = server.http.get("/metrics").text
    assert "engine_jit_compilations_total 0.0" in metrics
    for phase in ("open_device", "check", "load_weights", "allocate_kv", "load_code", "probe"):
        assert f'engine_startup_phase_seconds{{phase="{phase}"}}' in metrics


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_same_text_again(server: ServingProcess, count: int, params: dict[str, Any]) -> None:
    first, second = (ask(server, PROMPTS[0], count, **params) for _ in range(2))
    assert first.usage.completion_tokens == count
    assert first.choices[0].finish_reason == "length"
    assert first.choices[0].text == second.choices[0].text


def test_a_stream_is_the_same_text(server: ServingProcess, count: int) -> None:
    whole = ask(server, PROMPTS[1], count, **GREEDY).choices[0].text
    stream = ask(server, PROMPTS[1], count, stream=True, **GREEDY)
    assert "".join(event.choices[0].text for event in stream if event.choices) == whole


def test_many_at_once(server: ServingProcess, count: int) -> None:
    """More than run together: some wait, batches of every size come up."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = list(pool.map(lambda prompt: ask(server, prompt, count, **GREEDY), PROMPTS))
    assert [answer.usage.completion_tokens for answer in answers] == [count] * len(PROMPTS)
    assert server.http.get("/health").status_code == 200


def test_chat(server: ServingProcess, count: int) -> None:
    model = server.openai.models.list().data[0].id
    answer = server.openai.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}], max_tokens=count)
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= count


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_as_in_this_process(
    server: ServingProcess, served: Built, on_device: Callable[[Built], None], count: int, params: dict[str, Any]
) -> None:
    """The same request alone, without HTTP: the same buckets, hence the same tokens."""
    from engine.runtime.loading import load_executor

    on_device(served)
    answer = ask(server, PROMPTS[2], count, **params)
    executor = load_executor(served.artifact, **OPTIONS)
    core = EngineCore(executor, RuntimeOptions(**OPTIONS))
    core.submit(Submit("a", PROMPTS[2], SamplingParams(max_tokens=count, ignore_eos=True, **params)))
    tokens: list[int] = []
    while core.has_work():
        tokens += [token for output in core.step().outputs for token in output.tokens]
    executor.close()  # type: ignore[attr-defined]
    assert len(tokens) == count
    assert answer.choices[0].text == detokenized(served.artifact, tokens)


def detokenized(artifact: Path, tokens: list[int]) -> str:
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(artifact / "tokenizer" / "tokenizer.json")).decode(tokens)

"""The offline API, over the same protocol to a scripted worker."""

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import TOOLS_TEMPLATE, byte_level_tokenizer, write_artifact
from patience import PATIENCE
from serving_process import WORKER, ServingProcess

from engine.artifacts import AnswerForms
from engine.errors import ArtifactError, MismatchError, RequestError, WorkerError
from engine.server.llm import LLM, Params

GREEDY = Params(temperature=0)
HI = [{"role": "user", "content": "Hi 🎉"}]
TOKENIZER = byte_level_tokenizer()


def command(*flags: str) -> tuple[str, ...]:
    return (sys.executable, "-P", str(WORKER), *flags)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("llm") / "artifact")


@pytest.fixture(scope="module")
def llm(artifact: Path) -> Iterator[LLM]:
    with LLM(artifact, worker_command=command("--step", "0.001")) as llm:
        yield llm


def test_prompts_are_completed_together(llm: LLM) -> None:
    prompts = [f"number {i} 🎉" for i in range(12)]
    seen = dict.fromkeys(range(12), "")

    def on_token(index: int, text: str) -> None:
        seen[index] += text

    completions = llm.generate(prompts, GREEDY, on_token)
    assert [completion.text for completion in completions] == prompts == list(seen.values())
    for prompt, completion in zip(prompts, completions, strict=True):
        tokens = TOKENIZER.encode(prompt).ids
        assert completion.tokens == tokens
        assert (completion.finish_reason, completion.prompt_tokens, completion.generated_tokens) == ("stop", len(tokens), len(tokens) + 1)
        assert completion.logprobs is None
        assert 0 < completion.time_to_first_token <= completion.seconds
        assert completion.tokens_per_second > 0


def test_every_kind_of_prompt(llm: LLM) -> None:
    tokens = TOKENIZER.encode("a b").ids
    assert llm.generate([tokens], GREEDY)[0].text == "a b"
    assert llm.generate([HI], GREEDY)[0].text == llm.chat(HI, GREEDY).text == "user\nHi 🎉"
    assert llm.generate([], GREEDY) == []


def test_prompts_are_scored(llm: LLM) -> None:
    (completion,) = llm.generate(["a b c d"], Params(temperature=0, max_tokens=0, prompt_logprobs=1))
    tokens = TOKENIZER.encode("a b c d").ids
    assert completion.prompt_logprobs is not None
    assert [entry and entry.logprob for entry in completion.prompt_logprobs] == [None, *(-1.5 - token for token in tokens[1:])]
    assert (completion.text, completion.generated_tokens, completion.finish_reason) == ("", 0, "length")
    assert llm.generate(["a"], GREEDY)[0].prompt_logprobs is None


def test_logprobs_and_limits(llm: LLM) -> None:
    (completion,) = llm.generate(["a b c d"], Params(temperature=0, max_tokens=2, logprobs=1))
    assert (completion.text, completion.finish_reason) == ("a b", "length")
    assert completion.logprobs is not None
    assert [entry.logprob for entry in completion.logprobs] == [-0.5, -0.5]
    assert llm.generate(["a b c d"], Params(temperature=0, stop="c"))[0].text == "a b "


def test_chat_streams_and_counts(llm: LLM) -> None:
    pieces: list[str] = []
    completion = llm.chat(HI, GREEDY, pieces.append)
    assert "".join(pieces) == completion.text
    stream = llm.stream("a b c", GREEDY)
    assert "".join(stream) == "a b c"
    assert stream.completion.generated_tokens == 4


def test_chat_says_what_chat_completions_say(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact", template=TOOLS_TEMPLATE, forms=AnswerForms(tools="hermes", reasoning="think"))
    tools = [{"type": "function", "function": {"name": name}} for name in "fg"]
    call = '<tool_call>{"name": "f", "arguments": {"a": "</"}}</tool_call>'
    asked: list[dict[str, Any]] = [
        {"say": f"<think>Hm</think>So\n{call}\n{call}", "tools": tools},
        {"say": f"<think>Hm</think>{call}", "tools": tools, "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"say": f"So\n{call}", "tools": tools, "tool_choice": "none"},
        {"say": f"So\n{call}"},
        {"say": "Hm</think>So", "enable_thinking": True},
    ]
    with ServingProcess(artifact) as server, LLM(artifact, worker_command=command()) as llm:
        server.ready()
        for fields in asked:
            variables: dict[str, Any] = {name: fields.pop(name) for name in ("say", "enable_thinking") if name in fields}
            body = {"messages": HI, "temperature": 0, "chat_template_kwargs": variables, **fields}
            choice = server.http.post("/v1/chat/completions", json=body).json()["choices"][0]
            pieces: list[str] = []
            completion = llm.chat(HI, GREEDY, pieces.append, chat_template_kwargs=variables, **fields)
            assert "".join(pieces) == completion.text
            assert completion.finish_reason == choice["finish_reason"]
            ours, theirs = completion.message, choice["message"]
            for call_of_ours, call_of_theirs, given in zip(
                ours.get("tool_calls", []), theirs.get("tool_calls", []), completion.tool_calls, strict=True
            ):
                assert len(call_of_ours["id"]) == len(call_of_theirs.pop("id")) == 9
                assert call_of_ours.pop("id") == given.id
                assert call_of_ours["function"] == {"name": given.name, "arguments": given.arguments}
            assert ours == {name: theirs[name] for name in ("role", "content", "reasoning", "tool_calls") if name in theirs}
            llm.chat([*HI, completion.message], GREEDY, chat_template_kwargs=variables)  # it can be given back


def test_chats_are_held_to_what_they_ask_for(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact", template=TOOLS_TEMPLATE, forms=AnswerForms(tools="hermes"))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as events:
        events.bind(str(tmp_path / "events"))
        events.settimeout(PATIENCE)
        with LLM(artifact, worker_command=command("--events", str(tmp_path / "events"))) as llm:
            for choice, held in (("required", True), ("auto", False)):
                llm.chat(HI, GREEDY, tools=tools, tool_choice=choice)
                heard = json.loads(events.recv(1 << 16))
                while heard["event"] != "submit":
                    heard = json.loads(events.recv(1 << 16))
                assert ("<tool_call>" in (heard["grammar"] or "")) == held
            for arguments, param in (
                ({"tools": [{}]}, "tools[0].function"),
                ({"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs"),
            ):
                with pytest.raises(RequestError) as refused:
                    llm.chat(HI, GREEDY, **arguments)
                assert refused.value.param == param


def test_a_stream_that_is_left_is_aborted(artifact: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as events:
        events.bind(str(tmp_path / "events"))
        events.settimeout(PATIENCE)
        with LLM(artifact, worker_command=command("--step", "0.005", "--events", str(tmp_path / "events"))) as llm:
            with llm.stream("a b c", Params(temperature=0, ignore_eos=True)) as stream:
                assert next(iter(stream)) == "a"
            assert stream.completion.finish_reason is None
            heard = [events.recv(1 << 16) for _ in range(3)]
            assert b'"abort"' in heard[-1]
            assert llm.generate(["a b"], GREEDY)[0].text == "a b"


@pytest.mark.parametrize(
    ("params", "param"),
    [
        (Params(temperature=3), "temperature"),
        (Params(max_tokens=-1), "max_tokens"),
        (Params(logprobs=99), "logprobs"),
        (Params(stop=""), "stop"),
        (Params(logit_bias={10**6: 1.0}), "logit_bias"),
        (Params(max_tokens=1000), "max_tokens"),
    ],
)
def test_params_are_held_to_the_same_rules(llm: LLM, params: Params, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        llm.generate(["x"], params)
    assert caught.value.param == param


def test_prompts_that_cannot_be(llm: LLM) -> None:
    with pytest.raises(RequestError):
        llm.generate([""], GREEDY)
    for tokens in ([10**6], [-1], [5] * 600):
        with pytest.raises(RequestError):
            llm.generate([tokens], GREEDY)


def test_inside_an_event_loop(llm: LLM) -> None:
    async def notebook() -> str:
        return llm.generate(["a b"], GREEDY)[0].text

    assert asyncio.run(notebook()) == "a b"


def test_from_several_threads(llm: LLM) -> None:
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(llm.generate(["a b c"], GREEDY)[0].text)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["a b c"] * 4


def test_the_log_tells_the_phases(artifact: Path) -> None:
    lines: list[str] = []
    with LLM(artifact, worker_command=command(), log=lines.append) as llm:
        llm.close()
    assert lines == ["imports 0.25 s", "weights 0.50 s"]


def test_what_cannot_be_loaded(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        LLM(tmp_path, worker_command=command())
    with pytest.raises(MismatchError, match="made for another machine") as caught:
        LLM(artifact, worker_command=command("--fail"))
    assert (caught.value.exit_code, caught.value.hint) == (7, "build it here")
    with pytest.raises(WorkerError, match="exited with code 3, 3 times"):
        LLM(artifact, worker_command=command("--crash"))
    with pytest.raises(WorkerError, match="cannot be started"):
        LLM(artifact, worker_command=("/no/such/program",))


def test_a_worker_that_keeps_dying_is_an_error(artifact: Path) -> None:
    arguments: dict[str, Any] = {"worker_command": command("--crash-after", "2")}
    with LLM(artifact, **arguments) as llm, pytest.raises(WorkerError, match="exited with code 4, 3 times"):
        llm.generate(["a b c d e f g"], Params(temperature=0, ignore_eos=True))

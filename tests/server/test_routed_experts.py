"""Which experts tokens chose, in every shape in which clients ask for it."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import MODEL, byte_level_tokenizer, write_artifact
from checkout import ROOT
from serving_process import ServingProcess

from engine.artifacts import RoutesInfo
from engine.errors import RequestError
from engine.server.llm import LLM, Params

ROUTES = RoutesInfo(layers=[0, 1], experts=8, chosen=2)
TOKENIZER = byte_level_tokenizer()
TEXT = "a b c d e f g"
HI = [{"role": "user", "content": "Hi"}]
WORKER = (sys.executable, "-P", str(ROOT / "tests" / "support" / "scripted_worker.py"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("routes") / "artifact", routes=ROUTES)


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[ServingProcess]:
    with ServingProcess(artifact) as server:
        yield server.ready()


def post(server: ServingProcess, path: str = "completions", status: int = 200, **fields: Any) -> dict[str, Any]:
    response = server.http.post(f"/v1/{path}", json={"model": MODEL, "temperature": 0, **fields})
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


def experts(tokens: Sequence[int]) -> list[list[list[int]]]:
    """What the scripted worker says that they chose."""
    return [[[token % 8, (token + 1) % 8], [token // 8 % 8, (token // 8 + 3) % 8]] for token in tokens]


def ids(text: str) -> list[int]:
    tokens: list[int] = TOKENIZER.encode(text).ids
    return tokens


def test_every_token_is_told_but_the_last(server: ServingProcess) -> None:
    (choice,) = post(server, prompt=TEXT, max_tokens=3, return_routed_experts=True)["choices"]
    assert choice["routed_experts"] == experts([*ids(TEXT), *ids(TEXT)[:2]])
    (choice,) = post(server, prompt=TEXT, max_tokens=0, return_routed_experts=True)["choices"]
    assert choice["routed_experts"] == experts(ids(TEXT))
    (choice,) = post(server, prompt=TEXT, max_tokens=3)["choices"]
    assert "routed_experts" not in choice


def test_the_end_of_an_answer_was_never_computed(server: ServingProcess) -> None:
    """Neither where the text ended, nor where a stop string did."""
    (choice,) = post(server, prompt=ids("a b"), max_tokens=20, return_routed_experts=True)["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["routed_experts"] == experts([*ids("a b"), *ids("a b")])
    (choice,) = post(server, prompt=TEXT, max_tokens=20, stop=" c", return_routed_experts=True)["choices"]
    assert choice["text"] == "a b"
    assert choice["routed_experts"] == experts([*ids(TEXT), *ids("a b")])


def test_the_first_tokens_can_be_left_out(server: ServingProcess) -> None:
    whole = experts([*ids(TEXT), *ids(TEXT)[:2]])
    for start in (0, 3, len(ids(TEXT)), len(ids(TEXT)) + 1, 100):
        fields: dict[str, Any] = {"prompt": TEXT, "max_tokens": 3, "return_routed_experts": True, "routed_experts_start_len": start}
        assert [choice["routed_experts"] for choice in post(server, n=2, **fields)["choices"]] == [whole[start:]] * 2


def test_a_prompt_is_computed_once_for_all_its_choices(artifact: Path) -> None:
    """Unless each choice is told as it comes."""
    prompts = [ids("a b c"), ids("a b c d e")]
    fields: dict[str, Any] = {"prompt": prompts, "max_tokens": 2, "n": 2, "return_routed_experts": True}
    with ServingProcess(artifact) as counting:
        choices = post(counting.ready(), **fields)["choices"]
        assert [counting.event("submit")["routed_from"] for _ in range(4)] == [0, len(prompts[0]), 0, len(prompts[1])]
        assert [choice["routed_experts"] for choice in choices] == [experts([*prompt, prompt[0]]) for prompt in prompts for _ in range(2)]
        streamed(counting, "completions", **fields)
        assert [counting.event("submit")["routed_from"] for _ in range(4)] == [0] * 4


def streamed(server: ServingProcess, path: str, **fields: Any) -> list[dict[str, Any]]:
    """The choices of all chunks."""
    body = {"model": MODEL, "temperature": 0, "stream": True, **fields}
    with server.http.stream("POST", f"/v1/{path}", json=body) as response:
        assert response.status_code == 200
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
    return [choice for line in lines for choice in json.loads(line)["choices"]]


@pytest.mark.parametrize(("path", "asked"), [("completions", {"prompt": TEXT}), ("chat/completions", {"messages": HI})])
def test_a_stream_tells_them_with_its_end(server: ServingProcess, path: str, asked: dict[str, Any]) -> None:
    fields = {"max_tokens": 4, "return_routed_experts": True, **asked}
    (whole,) = post(server, path, **fields)["choices"]
    *others, last = streamed(server, path, **fields)
    assert last["finish_reason"] == "length"
    assert last["routed_experts"] == whole["routed_experts"]
    assert len(last["routed_experts"]) > 4
    assert not [chunk for chunk in others if "routed_experts" in chunk]
    assert not [chunk for chunk in streamed(server, path, max_tokens=4, **asked) if "routed_experts" in chunk]


def test_chat_tells_those_of_the_whole_prompt(server: ServingProcess) -> None:
    answer = post(server, "chat/completions", messages=HI, max_tokens=3, return_routed_experts=True, return_token_ids=True)
    (choice,) = answer["choices"]
    assert choice["routed_experts"] == experts([*answer["prompt_token_ids"], *choice["token_ids"][:-1]])


def test_workers_that_die_change_nothing_of_it(artifact: Path, server: ServingProcess) -> None:
    fields: dict[str, Any] = {"prompt": TEXT, "max_tokens": 6, "return_routed_experts": True, "routed_experts_start_len": 2}
    with ServingProcess(artifact, "--crash-after", "3") as dying:
        answer = post(dying.ready(), **fields)
        told = [dying.event("submit") for _ in range(2)]
    assert answer["choices"] == post(server, **fields)["choices"]
    assert [(submit["generated"], submit["routed"]) for submit in told] == [(0, 0), (3, len(ids(TEXT)) - 2 + 2)]


@pytest.mark.parametrize(("path", "asked"), [("completions", {"prompt": TEXT}), ("chat/completions", {"messages": HI})])
def test_an_artifact_that_does_not_tell_says_how_to_build_one(path: str, asked: dict[str, Any], tmp_path: Path) -> None:
    with ServingProcess(write_artifact(tmp_path / "artifact")) as plain:
        plain.ready()
        for stream in (False, True):
            error = post(plain, path, 400, return_routed_experts=True, stream=stream, **asked)["error"]
            assert (error["param"], error["code"]) == ("return_routed_experts", "unsupported_parameter")
            assert "engine build --capture-routes" in error["message"]
        post(plain, path, return_routed_experts=False, max_tokens=1, **asked)


def test_where_to_begin_needs_something_to_tell(server: ServingProcess) -> None:
    assert post(server, status=400, prompt=TEXT, routed_experts_start_len=1)["error"]["param"] == "routed_experts_start_len"
    assert post(server, status=400, prompt=TEXT, routed_experts_start_len=-1, return_routed_experts=True)["error"]["param"]


@pytest.mark.parametrize(("path", "asked"), [("responses", {"input": "Hi"}), ("messages", {"messages": HI, "max_tokens": 3})])
def test_other_apis_refuse_it_by_name(server: ServingProcess, path: str, asked: dict[str, Any]) -> None:
    assert "return_routed_experts is not supported" in post(server, path, 400, return_routed_experts=True, **asked)["error"]["message"]


def test_without_http(artifact: Path, tmp_path: Path) -> None:
    with LLM(artifact, worker_command=WORKER) as llm:
        told, untold = (llm.generate([TEXT], Params(temperature=0, max_tokens=2, return_routed_experts=asks)) for asks in (True, False))
        with llm.stream(TEXT, Params(temperature=0, max_tokens=2, return_routed_experts=True)) as stream:
            assert list(stream)
            assert stream.completion.routed_experts == told[0].routed_experts == experts([*ids(TEXT), ids(TEXT)[0]])
    assert untold[0].routed_experts is None
    with (
        LLM(write_artifact(tmp_path / "artifact"), worker_command=WORKER) as llm,
        pytest.raises(RequestError, match="does not tell which experts") as refused,
    ):
        llm.generate([TEXT], Params(return_routed_experts=True))
    assert "--capture-routes" in refused.value.hint

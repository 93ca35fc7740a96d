"""Structured output of a real model, over HTTP as clients use it: answers parse, and a killed worker changes nothing."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field
from serving_process import ServingProcess
from worker_of import worker_of

from engine.server.llm import LLM, Params

MESSAGES: Any = [{"role": "user", "content": "Invent a person, as JSON."}]


class Address(BaseModel):
    city: Literal["Paris", "Rome"]
    number: int = Field(ge=0, le=99)


class Person(BaseModel):
    name: str = Field(max_length=20)
    interests: list[Literal["music", "books"]] = Field(max_length=3)
    address: Address | None


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "interests": {"type": "array", "items": {"enum": ["music", "books"]}, "maxItems": 3},
    },
    "required": ["name", "age", "interests"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def server(smollm2: Path) -> Iterator[ServingProcess]:
    with ServingProcess(smollm2, worker_command=None, kv_memory=2**28, max_num_seqs=8) as server:
        yield server.ready()


def ask(server: ServingProcess, **fields: Any) -> Any:
    usual: dict[str, Any] = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 120, "temperature": 0}
    return server.openai.chat.completions.create(**{**usual, **fields})


def streamed(server: ServingProcess, **fields: Any) -> tuple[dict[int, str], int]:
    """The text of each choice, and how many events had any."""
    texts: dict[int, str] = {}
    count = 0
    for chunk in ask(server, stream=True, **fields):
        for choice in chunk.choices:
            if choice.delta.content:
                texts[choice.index] = texts.get(choice.index, "") + choice.delta.content
                count += 1
    return texts, count


def check(text: str) -> None:
    person = json.loads(text)
    assert list(person) == ["name", "age", "interests"]
    assert len(person["name"]) <= 20
    assert 0 <= person["age"] <= 120
    assert set(person["interests"]) <= {"music", "books"}


@pytest.mark.parametrize("temperature", [0, 1])
def test_every_choice_follows_the_schema_and_a_stream_says_the_same(server: ServingProcess, temperature: int) -> None:
    fields = {"response_format": FORMAT, "n": 3, "temperature": temperature, "seed": 5}
    whole = ask(server, **fields)
    for choice in whole.choices:
        check(choice.message.content)
        assert choice.finish_reason == "stop"
    texts, events = streamed(server, **fields)
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert events < whole.usage.completion_tokens, "forced tokens come with the one before them"


def test_logprobs_change_no_token(server: ServingProcess) -> None:
    answer = ask(server, response_format=FORMAT, logprobs=True, top_logprobs=1)
    assert answer.choices[0].message.content == ask(server, response_format=FORMAT).choices[0].message.content
    assert "".join(entry.token for entry in answer.choices[0].logprobs.content) == answer.choices[0].message.content


def test_models_of_pydantic(server: ServingProcess) -> None:
    answer = server.openai.chat.completions.parse(
        model="smollm2", messages=MESSAGES, response_format=Person, max_tokens=300, temperature=0.3, seed=2
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


@pytest.mark.parametrize(
    ("body", "pattern"),
    [
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"guided_regex": r"\d{4}-\d{2}-\d{2}"}, r"\d{4}-\d{2}-\d{2}"),
        ({"structured_outputs": {"grammar": 'root ::= "(" d d ")"\nd ::= [0-9]'}}, r"\(\d\d\)"),
        ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}}, r'\{"name":"[^"]*","age":\d+,"interests":\[.*\]\}'),
    ],
)
def test_other_rules(server: ServingProcess, body: dict[str, Any], pattern: str) -> None:
    assert re.fullmatch(pattern, ask(server, extra_body=body).choices[0].message.content)
    completion = server.openai.completions.create(model="smollm2", prompt="The answer:", max_tokens=60, seed=1, extra_body=body)
    assert re.fullmatch(pattern, completion.choices[0].text)


def test_what_the_worker_finds_out_is_a_clear_error_too(server: ServingProcess) -> None:
    body = {"messages": MESSAGES, "guided_json": {"type": "string", "pattern": "^(a{1000}){1000}$"}}
    answer = server.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "cannot be followed" in answer.json()["error"]["message"]


def test_others_beside_it_get_the_same_as_without(server: ServingProcess) -> None:
    free = {"temperature": 1, "seed": 9, "max_tokens": 60}
    alone = ask(server, **free).choices[0].message.content
    with ThreadPoolExecutor() as pool:
        formatted = [pool.submit(ask, server, response_format=FORMAT, temperature=1, seed=seed) for seed in range(4)]
        beside = pool.submit(ask, server, **free)
        assert beside.result().choices[0].message.content == alone
        for answer in formatted:
            check(answer.result().choices[0].message.content)


def test_a_killed_worker_changes_nothing(server: ServingProcess) -> None:
    fields = {"response_format": FORMAT, "n": 3, "temperature": 1, "seed": 11}
    whole = ask(server, **fields)
    texts: dict[int, str] = {}
    killed = False
    for chunk in ask(server, stream=True, **fields):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        if not killed and sum(map(len, texts.values())) > 40:
            worker_of(server.process.pid).kill()
            killed = True
    assert killed
    assert texts == {choice.index: choice.message.content for choice in whole.choices}


def test_offline(smollm2: Path) -> None:
    with LLM(smollm2, kv_memory=2**28) as llm:
        params = Params(max_tokens=120, temperature=0, response_format=FORMAT)
        (completion,) = llm.generate(["A person: "], params)
        check(completion.text)

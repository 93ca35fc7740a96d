"""What a prompt's own tokens are scored, in every shape in which clients ask for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import MAX_CONTEXT, MODEL, byte_level_tokenizer, write_artifact
from serving_process import ServingProcess

TOKENIZER = byte_level_tokenizer()
TEXT = "One 🎉 lazy dog"
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("scores") / "artifact")


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[ServingProcess]:
    with ServingProcess(artifact) as server:
        yield server.ready()


def ids(text: str) -> list[int]:
    tokens: list[int] = TOKENIZER.encode(text).ids
    return tokens


def complete(server: ServingProcess, **fields: Any) -> dict[str, Any]:
    response = server.http.post("/v1/completions", json={"model": MODEL, "temperature": 0, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def scores(prompt: list[int]) -> list[float | None]:
    """What the scripted worker says of a prompt."""
    return [None, *(-1.5 - token for token in prompt[1:])]


def test_echo_with_logprobs_is_the_prompt_and_the_answer(server: ServingProcess) -> None:
    (choice,) = complete(server, prompt=TEXT, echo=True, logprobs=1, max_tokens=2)["choices"]
    prompt, logprobs = ids(TEXT), choice["logprobs"]
    assert choice["text"].startswith(TEXT)
    assert logprobs["token_logprobs"] == [*scores(prompt), -0.5, -0.5]
    assert logprobs["top_logprobs"][0] is None
    assert all(token == next(iter(top)) for token, top in list(zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True))[1:])
    assert {len(top) for top in logprobs["top_logprobs"][1 : len(prompt)]} == {2}
    whole = [
        (offset, name) for offset, name in zip(logprobs["text_offset"], logprobs["tokens"], strict=True) if not name.startswith("bytes:")
    ]
    assert len(whole) < len(logprobs["tokens"]), "the emoji is several tokens"
    assert [choice["text"][offset : offset + len(name)] for offset, name in whole] == [name for _, name in whole]
    inside = [
        offset
        for offset, name in zip(logprobs["text_offset"], logprobs["tokens"], strict=True)
        if name.startswith("bytes:") and offset < len(TEXT)
    ]
    assert {choice["text"][offset] for offset in inside} <= {" ", "🎉"}


def test_what_lm_eval_sums_up(server: ServingProcess) -> None:
    """Its last token is the answer's, the end of text included, and all before are the prompt's."""
    given = [ids("One dog"), ids("a b c")]
    for max_tokens in (1, 100):
        answer = complete(server, prompt=given, echo=True, logprobs=1, max_tokens=max_tokens)
        for prompt, choice in zip(given, answer["choices"], strict=True):
            generated = min(max_tokens, len(prompt) + 1)
            assert choice["logprobs"]["token_logprobs"][: len(prompt)] == scores(prompt)
            assert len(choice["logprobs"]["tokens"]) == len(prompt) + generated


def test_nothing_is_generated_where_no_tokens_are_wanted(server: ServingProcess) -> None:
    answer = complete(server, prompt=TEXT, echo=True, logprobs=0, max_tokens=0)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert choice["logprobs"]["token_logprobs"] == scores(ids(TEXT))
    assert answer["usage"]["completion_tokens"] == 0
    (choice,) = complete(server, prompt=TEXT, max_tokens=0)["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == ("", "length", None)
    longest = [5] * MAX_CONTEXT
    assert complete(server, prompt=longest, max_tokens=0)["usage"]["prompt_tokens"] == MAX_CONTEXT
    response = server.http.post("/v1/completions", json={"prompt": [*longest, 5], "max_tokens": 0})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_echo_with_logprobs_streams_the_prompt_first(server: ServingProcess) -> None:
    whole = server.openai.completions.create(model=MODEL, prompt=TEXT, echo=True, logprobs=2, max_tokens=3, temperature=0)
    chunks = list(
        server.openai.completions.create(model=MODEL, prompt=TEXT, echo=True, logprobs=2, max_tokens=3, temperature=0, stream=True)
    )
    assert chunks[0].choices[0].text == TEXT
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    parts = [chunk.choices[0].logprobs for chunk in chunks]
    assert whole.choices[0].logprobs is not None
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [item for part in parts if part for item in getattr(part, name)] == getattr(whole.choices[0].logprobs, name)


def test_prompt_logprobs_of_completions(server: ServingProcess) -> None:
    answer = complete(server, prompt=["a b c", TEXT], prompt_logprobs=2, max_tokens=1, n=2)
    for choice, text in zip(answer["choices"], ["a b c", "a b c", TEXT, TEXT], strict=True):
        first, *others = choice["prompt_logprobs"]
        assert first is None
        for token, entry in zip(ids(text)[1:], others, strict=True):
            assert entry[str(token)]["logprob"] == -1.5 - token
            assert entry[str(token)]["rank"] == 7
            assert {each["rank"] for each in entry.values()} == {1, 2, 7}
        assert choice["logprobs"] is None
    names = [
        entry[str(token)]["decoded_token"]
        for token, entry in zip(ids("a b c")[1:], answer["choices"][0]["prompt_logprobs"][1:], strict=True)
    ]
    assert names == [" b", " c"]


def test_prompt_logprobs_of_chat(server: ServingProcess) -> None:
    response = server.http.post("/v1/chat/completions", json={"messages": HI, "prompt_logprobs": 0, "max_tokens": 1})
    answer = response.json()
    assert answer["prompt_logprobs"][0] is None
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert all(len(entry) == 1 for entry in answer["prompt_logprobs"][1:])
    assert server.http.post("/v1/chat/completions", json={"messages": HI, "max_tokens": 1}).json()["prompt_logprobs"] is None


def test_a_prompt_is_scored_once_for_all_its_choices(artifact: Path) -> None:
    """Unless each choice is told as it comes, the prompt first."""
    fields: dict[str, Any] = {"prompt": TEXT, "echo": True, "logprobs": 0, "max_tokens": 1, "n": 3}
    with ServingProcess(artifact) as counting:
        choices = complete(counting.ready(), **fields)["choices"]
        assert [counting.event("submit")["prompt_logprobs"] for _ in range(3)] == [0, None, None]
        assert all(choice["logprobs"]["token_logprobs"] == [*scores(ids(TEXT)), -0.5] for choice in choices)
        chunks = list(counting.openai.completions.create(model=MODEL, temperature=0, stream=True, **fields))
        assert [counting.event("submit")["prompt_logprobs"] for _ in range(3)] == [0, 0, 0]
    for index in range(3):
        logprobs = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].index == index]
        told = [value for part in logprobs if part for value in part.token_logprobs or []]
        assert told == [*scores(ids(TEXT)), -0.5]


def test_workers_that_die_change_nothing_of_the_scores(artifact: Path, server: ServingProcess) -> None:
    """The first dies in the midst of them, the second once it has begun to answer."""
    fields: dict[str, Any] = {"prompt": TEXT, "echo": True, "logprobs": 2, "max_tokens": 4}
    with ServingProcess(artifact, "--crash-after", "3") as dying:
        answer = complete(dying.ready(), **fields)
        told = [dying.event("submit") for _ in range(3)]
    assert [(event["scored"], event["generated"]) for event in told] == [(0, 0), (9, 0), (10, 2)]
    assert answer["choices"] == complete(server, **fields)["choices"]

"""Fields of vLLM's about tokens: which ones came, how a prompt is made of a text, what special ones look like."""

from collections.abc import Iterator
from typing import Any

import pytest
from artifact_stand_in import BOS, END, EOS, MAX_CONTEXT, MODEL, byte_level_tokenizer, token_id, write_artifact
from serving_process import ServingProcess

TOKENIZER = byte_level_tokenizer()
HI = [{"role": "user", "content": "Hi 🎉"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    with ServingProcess(write_artifact(tmp_path_factory.mktemp("tokens") / "artifact")) as server:
        yield server.ready()


def ids(text: str) -> list[int]:
    tokens: list[int] = TOKENIZER.encode(text).ids
    return tokens


def post(server: ServingProcess, path: str, **fields: Any) -> dict[str, Any]:
    response = server.http.post(path, json={"model": MODEL, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def complete(server: ServingProcess, **fields: Any) -> dict[str, Any]:
    return post(server, "/v1/completions", temperature=0, **fields)


def chat(server: ServingProcess, **fields: Any) -> dict[str, Any]:
    return post(server, "/v1/chat/completions", temperature=0, **fields)


def chunks(server: ServingProcess, path: str, **fields: Any) -> list[dict[str, Any]]:
    import json

    with server.http.stream("POST", path, json={"model": MODEL, "temperature": 0, "stream": True, **fields}) as response:
        return [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line.startswith("data: {")]


def refusal(server: ServingProcess, path: str, **fields: Any) -> str:
    response = server.http.post(path, json={"model": MODEL, **fields})
    assert response.status_code == 400
    param: str = response.json()["error"]["param"]
    return param


def test_token_ids_are_all_that_came(server: ServingProcess) -> None:
    """The end of text and what a stop string cuts off included, as a trainer needs them."""
    eos = token_id(TOKENIZER, EOS)
    answer = complete(server, prompt=["a b", "a 🎉 c"], return_token_ids=True)
    for choice, text in zip(answer["choices"], ["a b", "a 🎉 c"], strict=True):
        assert (choice["prompt_token_ids"], choice["token_ids"]) == (ids(text), [*ids(text), eos])
    (choice,) = complete(server, prompt="a b c d", stop=" c", return_token_ids=True)["choices"]
    assert (choice["text"], choice["token_ids"]) == ("a b", ids("a b c"))
    answer = chat(server, messages=HI, return_token_ids=True)
    assert answer["choices"][0]["token_ids"] == [*answer["prompt_token_ids"][: answer["prompt_token_ids"].index(eos)], eos]


@pytest.mark.parametrize(("path", "fields"), [("/v1/completions", {"prompt": "a 🎉 c"}), ("/v1/chat/completions", {"messages": HI})])
def test_token_ids_of_a_stream_are_those_of_the_whole(server: ServingProcess, path: str, fields: dict[str, Any]) -> None:
    whole = post(server, path, temperature=0, return_token_ids=True, **fields)
    streamed = chunks(server, path, return_token_ids=True, **fields)
    assert [id for chunk in streamed for id in chunk["choices"][0].get("token_ids", [])] == whole["choices"][0]["token_ids"]
    first = streamed[0] if "chat" in path else streamed[0]["choices"][0]
    assert first["prompt_token_ids"] == (whole if "chat" in path else whole["choices"][0])["prompt_token_ids"]
    assert sum("prompt_token_ids" in str(chunk) for chunk in streamed) == 1


def test_tokens_may_be_called_by_their_ids(server: ServingProcess) -> None:
    fields: dict[str, Any] = {"logprobs": 1, "max_tokens": 2, "return_tokens_as_token_ids": True}
    (choice,) = complete(server, prompt="a b", echo=True, **fields)["choices"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{id}" for id in ids("a b") * 2]
    assert all(name.startswith("token_id:") for top in choice["logprobs"]["top_logprobs"][1:] for name in top)
    answer = chat(server, messages=HI, logprobs=True, top_logprobs=1, max_tokens=1, return_tokens_as_token_ids=True)
    (entry,) = answer["choices"][0]["logprobs"]["content"]
    assert entry["token"] == entry["top_logprobs"][0]["token"] == f"token_id:{token_id(TOKENIZER, BOS)}"
    assert bytes(entry["bytes"]).decode() == BOS


def test_logprobs_of_named_tokens_stand_in_place_of_the_most_likely_ones(server: ServingProcess) -> None:
    fields: dict[str, Any] = {"max_tokens": 1, "logprob_token_ids": [7, 5], "return_tokens_as_token_ids": True}
    chosen = f"token_id:{token_id(TOKENIZER, BOS)}"
    answer = chat(server, messages=HI, logprobs=True, top_logprobs=3, **fields)
    (entry,) = answer["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in entry["top_logprobs"]] == [chosen, "token_id:7", "token_id:5"]
    assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]
    (choice,) = complete(server, prompt="a b", logprobs=3, **fields)["choices"]
    assert list(choice["logprobs"]["top_logprobs"][0]) == [choice["logprobs"]["tokens"][0], "token_id:7", "token_id:5"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/v1/completions", {"prompt": "a b", "logprobs": 0}), ("/v1/chat/completions", {"messages": HI, "logprobs": True})],
)
def test_a_chunk_without_tokens_has_no_logprobs(server: ServingProcess, path: str, fields: dict[str, Any]) -> None:
    found = [chunk["choices"][0]["logprobs"] for chunk in chunks(server, path, max_tokens=2, **fields)]
    assert [logprobs is None for logprobs in found[-2:]] == [False, True]


def test_special_tokens_are_shown_to_who_asks(server: ServingProcess) -> None:
    prompt = [*ids("a"), token_id(TOKENIZER, END), *ids(" b")]
    assert complete(server, prompt=prompt)["choices"][0]["text"] == "a b"
    assert complete(server, prompt=prompt, skip_special_tokens=False)["choices"][0]["text"] == f"a{END} b"
    assert complete(server, prompt=prompt, skip_special_tokens=False, stop=END)["choices"][0]["text"] == "a"
    assert complete(server, prompt=prompt, spaces_between_special_tokens=False)["choices"][0]["text"] == "a b"
    assert complete(server, prompt=prompt)["choices"][0]["text"] == "a b", "nothing of it stays behind"


def test_the_last_message_goes_on(server: ServingProcess) -> None:
    messages = [*HI, {"role": "assistant", "content": "The answer is "}]
    begun = f"{BOS}user\nHi 🎉{EOS}\n{BOS}assistant\nThe answer is "
    asked: dict[str, Any] = {"messages": messages, "continue_final_message": True, "return_token_ids": True, "max_tokens": 3}
    answer = chat(server, **asked)
    assert answer["prompt_token_ids"] == ids(begun)
    echoed = chat(server, **asked, echo=True)["choices"][0]["message"]
    assert echoed == {**answer["choices"][0]["message"], "content": "The answer is " + answer["choices"][0]["message"]["content"]}
    assert (
        "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks(server, "/v1/chat/completions", **asked, echo=True))
        == echoed["content"]
    )
    assert post(server, "/tokenize", messages=messages, continue_final_message=True)["tokens"] == ids(begun)
    for path in ("/v1/chat/completions", "/tokenize"):
        assert refusal(server, path, messages=messages, continue_final_message=True, add_generation_prompt=True) == "continue_final_message"


def test_no_turn_is_opened_where_none_is_wanted(server: ServingProcess) -> None:
    answer = chat(server, messages=HI, add_generation_prompt=False, return_token_ids=True, max_tokens=1)
    assert answer["prompt_token_ids"] == ids(f"{BOS}user\nHi 🎉{EOS}\n")
    assert answer["choices"][0]["message"]["role"] == "user", "whose turn it still is"
    assert chat(server, messages=HI, echo=True, max_tokens=1)["choices"][0]["message"]["content"] == ""


def test_prompts_are_cut(server: ServingProcess) -> None:
    text = "a b c d e f g"
    (choice,) = complete(server, prompt=text, truncate_prompt_tokens=3, echo=True, logprobs=0, max_tokens=1, return_token_ids=True)[
        "choices"
    ]
    assert choice["prompt_token_ids"] == ids(text)[-3:]
    assert choice["text"].startswith(" e f g")
    assert choice["logprobs"]["text_offset"][:3] == [0, 2, 4]
    long = [ids("a")[0]] * 2000
    (choice,) = complete(server, prompt=long, truncate_prompt_tokens=-1, max_tokens=4, ignore_eos=True, return_token_ids=True)["choices"]
    assert (len(choice["prompt_token_ids"]), len(choice["token_ids"])) == (MAX_CONTEXT - 4, 4)
    answer = chat(server, messages=[{"role": "user", "content": "a " * 4000}], truncate_prompt_tokens=-1, max_tokens=2)
    assert answer["usage"]["prompt_tokens"] == MAX_CONTEXT - 2
    (choice,) = complete(server, prompt=text, truncate_prompt_tokens=3, truncation_side="right", max_tokens=1, return_token_ids=True)[
        "choices"
    ]
    assert choice["prompt_token_ids"] == ids(text)[:3]
    assert refusal(server, "/v1/completions", prompt="a", truncate_prompt_tokens=0) == "truncate_prompt_tokens"
    assert refusal(server, "/v1/completions", prompt="a", truncate_prompt_tokens=-2) == "truncate_prompt_tokens"


def test_a_whole_answer_says_null_for_what_vllm_says_null_for(server: ServingProcess) -> None:
    (choice,) = complete(server, prompt="a", max_tokens=1)["choices"]
    assert [choice[name] for name in ("prompt_logprobs", "prompt_token_ids", "token_ids")] == [None] * 3
    assert chat(server, messages=HI, max_tokens=1)["prompt_logprobs"] is None


def test_usage_in_every_chunk(server: ServingProcess) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    streamed = chunks(server, "/v1/completions", prompt="a b c", max_tokens=3, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in streamed]
    assert counts == sorted(counts)
    assert (counts[0] > 0, counts[-1]) == (True, 3)
    assert streamed[-1]["choices"] == []
    assert {chunk["usage"]["prompt_tokens"] for chunk in streamed} == {3}
    spoken = chunks(server, "/v1/chat/completions", messages=HI, max_tokens=3, n=2, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in spoken]
    assert (counts, counts[-1]) == (sorted(counts), 6)
    assert counts[0] == 0, "the first chunk says who speaks, and no token"
    without = chunks(server, "/v1/completions", prompt="a b c", max_tokens=3, stream_options={"continuous_usage_stats": True})
    assert not any("usage" in chunk for chunk in without)


def test_tokenize_has_options(server: ServingProcess) -> None:
    answer = post(server, "/tokenize", prompt="a 🎉", return_token_strs=True)
    assert answer["token_strs"] == [TOKENIZER.id_to_token(id) for id in ids("a 🎉")]
    assert post(server, "/tokenize", prompt="a")["token_strs"] is None

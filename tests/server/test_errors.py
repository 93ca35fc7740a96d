"""Requests that cannot be served: the status, the field at fault, a way out."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from artifact_stand_in import MODEL, write_artifact
from serving_process import ServingProcess

JSON = {"content-type": "application/json"}
USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    with ServingProcess(write_artifact(tmp_path_factory.mktemp("server") / "artifact")) as server:
        yield server.ready()


def refused(server: ServingProcess, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    response = server.http.post(path, content=content, headers=JSON)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": -1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"seed": 2**70}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [99999]}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words[0]"),
        ({"bad_words": ["a"] * 257}, "bad_words"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop_token_ids": [99999]}, "stop_token_ids"),
        ({"logprob_token_ids": [99999]}, "logprob_token_ids"),
        ({"logprob_token_ids": [5]}, "logprob_token_ids"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"what": 1}}, "stream_options.what"),
        ({"temprature": 1}, "temprature"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": None}, "prompt"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_completion_fields(server: ServingProcess, fields: dict[str, Any], param: str) -> None:
    error = refused(server, "/v1/completions", {"model": MODEL, "prompt": "x", **fields})
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


def test_keys_of_logit_bias_that_are_no_numbers_are_named(server: ServingProcess) -> None:
    error = refused(server, "/v1/completions", {"model": MODEL, "prompt": "x", "logit_bias": {"a": 1, "5": 1, "b": 2}})
    assert (error["param"], error["code"]) == ("logit_bias", "invalid_value")
    assert "the keys 'a', 'b'" in error["message"]


@pytest.mark.parametrize("fields", [{"use_beam_search": True}, {"best_of": 4, "n": 2}, {"length_penalty": 0.8}, {"early_stopping": True}])
def test_beam_search_is_refused_with_what_to_do_instead(server: ServingProcess, fields: dict[str, Any]) -> None:
    error = refused(server, "/v1/completions", {"model": MODEL, "prompt": "x", **fields})
    assert (error["param"], error["code"]) == (next(iter(fields)), "unsupported_parameter")
    assert "n sampled choices" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"audio": {}}, "audio"),
        ({"reasoning_effort": 3}, "reasoning_effort"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"skip_special_tokens": 1}, "skip_special_tokens"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"messages": [*USER, {"role": "assistant", "tool_calls": [{}]}]}, "messages[1].tool_calls[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_chat_fields(server: ServingProcess, fields: dict[str, Any], param: str) -> None:
    assert refused(server, "/v1/chat/completions", {"model": MODEL, "messages": USER, **fields})["param"] == param


def test_a_missing_field(server: ServingProcess) -> None:
    assert refused(server, "/v1/completions", {})["message"].startswith("the field 'prompt' is required\nhint: ")
    assert refused(server, "/v1/chat/completions", {})["param"] == "messages"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'{"prompt": "x",\n  oops}', "line 2, column 3"),
        (b'{"prompt"', "line 1, column 10"),
        (b"", "line 1"),
        (b"\xff", "line 1, column 1"),
    ],
)
def test_malformed_json_says_where(server: ServingProcess, body: bytes, where: str) -> None:
    error = refused(server, "/v1/completions", body)
    assert where in error["message"]
    assert error["code"] == "invalid_json"


@pytest.mark.parametrize("body", [b"[]", b"3", b'"x"', b"null", b'{"prompt": "\\ud83d"}', b'{"prompt": NaN}', b"[" * 5000])
def test_json_that_is_no_request(server: ServingProcess, body: bytes) -> None:
    refused(server, "/v1/completions", body)


def test_a_body_that_is_not_json(server: ServingProcess) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    response = server.http.post("/v1/completions", content=b'{"prompt": "x"}', headers=headers)
    assert response.status_code == 415
    assert "Content-Type: application/json" in response.json()["error"]["message"]
    headers = {"content-type": "application/json; charset=utf-8"}
    assert server.http.post("/v1/completions", content=b'{"prompt": "x"}', headers=headers).status_code == 200


@pytest.mark.parametrize("kind", [None, "text/plain", "multipart/form-data"])
def test_a_body_that_no_page_had_to_ask_leave_for(server: ServingProcess, kind: str | None) -> None:
    """A web page may send a body of these types anywhere, unasked."""
    response = server.http.post("/v1/completions", content=b'{"prompt": "x"}', headers={} if kind is None else {"content-type": kind})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_an_encoded_body(server: ServingProcess) -> None:
    response = server.http.post("/v1/completions", content=gzip.compress(b"{}"), headers={**JSON, "content-encoding": "gzip"})
    assert response.status_code == 415
    assert "encoded as gzip" in response.json()["error"]["message"]


def test_a_body_that_is_too_large(server: ServingProcess) -> None:
    error = refused(server, "/v1/completions", b'{"prompt": "' + b"x" * 2**25 + b'"}', 413)
    assert error["code"] == "body_too_large"

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 2**20

    assert server.http.post("/v1/completions", content=chunks(), headers=JSON).status_code == 413


def test_an_unknown_model(server: ServingProcess) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.openai.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "Hi"}])
    assert caught.value.code == "model_not_found"
    assert "'gpt-5'" in str(caught.value)
    assert f"'{MODEL}'" in str(caught.value)


def test_a_prompt_longer_than_the_context(server: ServingProcess) -> None:
    error = refused(server, "/v1/completions", {"prompt": [5] * 512})
    assert error["code"] == "context_length_exceeded"
    assert "512" in error["message"]
    assert "shorten the prompt by at least 1 token" in error["message"]
    assert refused(server, "/v1/completions", {"prompt": [5] * 600, "max_tokens": 1})["param"] == "prompt"
    error = refused(server, "/v1/completions", {"prompt": [5] * 500, "max_tokens": 13})
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    assert "lower max_tokens to 12" in error["message"]
    assert server.http.post("/v1/completions", json={"prompt": [5] * 500, "max_tokens": 12}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "ab " * 10**6}, "prompt"),
        ("/v1/completions", {"prompt": ["x", "ab " * 10**6]}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "ab " * 10**6}]}, "messages"),
    ],
    ids=["text", "texts", "messages"],
)
def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(server: ServingProcess, path: str, body: Any, param: str) -> None:
    error = refused(server, path, body)
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert "has at least" in error["message"], "how many it has is not known"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": ["x"] * 5000}, "prompt"),
        ("/v1/chat/completions", {"messages": USER * 10001}, "messages"),
        ("/tokenize", {"messages": USER * 10001}, "messages"),
        ("/detokenize", {"tokens": [1] * 262145}, "tokens"),
        ("/tokenize", {"messages": USER, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ],
)
def test_lists_beyond_any_use(server: ServingProcess, path: str, body: Any, param: str) -> None:
    assert refused(server, path, body)["param"] == param


def test_long_texts_are_tokenized_all_the_same(server: ServingProcess) -> None:
    text = "One, two " * 4000
    tokens = server.http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert len(tokens) > 4000
    assert server.http.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == text
    chat = server.http.post("/tokenize", json={"messages": [{"role": "user", "content": text}]}).json()
    assert chat["count"] > len(tokens)


def test_a_prompt_longer_than_the_kv_cache(tmp_path: Path) -> None:
    with ServingProcess(write_artifact(tmp_path / "artifact"), "--blocks", "4") as server:
        server.ready()
        error = refused(server, "/v1/completions", {"prompt": [5] * 64})
        assert error["code"] == "context_length_exceeded"
        assert "--kv-memory" in error["message"]
        answer = server.http.post("/v1/completions", json={"prompt": [5] * 60, "ignore_eos": True, "max_tokens": 4}).json()
        assert answer["usage"]["total_tokens"] == 64


def test_unknown_paths_and_methods(server: ServingProcess) -> None:
    assert refused(server, "/v1/nothing", {}, 404)["message"].startswith("there is no /v1/nothing here\nhint: ")
    assert "it is /v1/chat/completions" in refused(server, "/chat/completions", {}, 404)["message"]
    response = server.http.get("/v1/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_tokenize_wants_one_thing(server: ServingProcess) -> None:
    refused(server, "/tokenize", {})
    refused(server, "/tokenize", {"prompt": "x", "messages": USER})
    assert refused(server, "/detokenize", {"tokens": [99999]})["param"] == "tokens"
    assert refused(server, "/tokenize", {"prompt": "x", "model": "other"}, 404)["code"] == "model_not_found"


def test_too_many_sequences_for_this_server_at_all(server: ServingProcess) -> None:
    error = refused(server, "/v1/completions", {"prompt": ["x"] * 100, "n": 100})
    assert error["code"] == "too_many_sequences"


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_the_worker_refuses(tmp_path: Path, stream: bool) -> None:
    with ServingProcess(write_artifact(tmp_path / "artifact"), "--refuse") as server:
        error = refused(server.ready(), "/v1/completions", {"prompt": "x", "stream": stream})
    assert error["message"].startswith("this worker refuses everything\nhint: ")


def test_api_key(tmp_path: Path) -> None:
    with ServingProcess(write_artifact(tmp_path / "artifact"), api_key="sécret") as server:
        server.ready()
        for key in ("", "Bearer wrong", "Bearer", "Basic sécret", "Bearer sécretx"):
            response = server.http.get("/v1/models", headers=[(b"authorization", key.encode())])
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer"), key
            assert response.json()["error"]["code"] == "invalid_api_key"
        for path in ("/tokenize", "/detokenize", "/v1/completions"):
            assert server.http.post(path, json={}, headers={"authorization": ""}).status_code == 401
        for path in ("/health", "/metrics"):
            assert server.http.get(path, headers={"authorization": ""}).status_code == 200
        for header in ((b"authorization", "Bearer sécret".encode()), (b"x-api-key", "sécret".encode())):
            assert server.http.get("/v1/models", headers=[header]).status_code == 200
        assert server.http.get("/v1/models", headers={"x-api-key": "wrong", "authorization": ""}).status_code == 401

"""The OpenAI API over a real connection, with OpenAI's own client."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from artifact_stand_in import BOS, END, EOS, MODEL, byte_level_tokenizer, write_artifact
from serving_process import ServingProcess

TOKENIZER = byte_level_tokenizer()
HI: list[Any] = [{"role": "user", "content": "Hi 🎉 there"}]
CHAT_PROMPT = "<|im_start|>user\nHi 🎉 there<|im_end|>\n<|im_start|>assistant\n"
CHAT_ECHO = "user\nHi 🎉 there"
"""What the worker says back: the prompt up to its first end-of-turn token."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    with ServingProcess(write_artifact(tmp_path_factory.mktemp("server") / "artifact")) as server:
        yield server.ready()


def ids(text: str) -> list[int]:
    tokens: list[int] = TOKENIZER.encode(text).ids
    return tokens


def test_chat(server: ServingProcess) -> None:
    answer = server.openai.chat.completions.create(model=MODEL, messages=HI, temperature=0)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", CHAT_ECHO, "stop")
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.usage is not None
    prompt, generated = len(ids(CHAT_PROMPT)), len(ids(CHAT_PROMPT.partition("<|im_end|>")[0])) + 1
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        prompt,
        generated,
        prompt + generated,
    )
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


def test_chat_stream(server: ServingProcess) -> None:
    stream = server.openai.chat.completions.create(
        model=MODEL, messages=HI, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert {chunk.object for chunk in [*chunks, last]} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in [*chunks, last]}) == 1
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == CHAT_ECHO
    assert not any("\ufffd" in text for text in texts)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.prompt_tokens == len(ids(CHAT_PROMPT))


def test_a_stream_is_plain_events_and_ends_with_done(server: ServingProcess) -> None:
    body = {"prompt": "One, two", "stream": True, "temperature": 0}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-request-id"].startswith("cmpl-")
        lines = list(response.iter_lines())
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: ") for line in lines[::2])
    assert "usage" not in "".join(lines)


def test_completions_of_every_kind_of_prompt(server: ServingProcess) -> None:
    texts = ["The lazy dog", "a fish"]
    prompts: list[Any] = [texts[0], texts, ids(texts[0]), [ids(text) for text in texts]]
    for prompt in prompts:
        answer = server.openai.completions.create(model=MODEL, prompt=prompt, temperature=0)
        wanted = texts if isinstance(prompt[0], list) or prompt == texts else texts[:1]
        assert [choice.text for choice in answer.choices] == wanted
        assert [choice.index for choice in answer.choices] == list(range(len(wanted)))
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(len(ids(text)) for text in wanted)


def test_echo_puts_the_prompt_first(server: ServingProcess) -> None:
    answer = server.openai.completions.create(model=MODEL, prompt=["One", "Two 🎉"], echo=True, n=2, temperature=0)
    assert [choice.text for choice in answer.choices] == ["OneOne", "OneOne", "Two 🎉Two 🎉", "Two 🎉Two 🎉"]
    stream = server.openai.completions.create(model=MODEL, prompt="One", echo=True, stream=True, temperature=0)
    assert "".join(chunk.choices[0].text for chunk in stream) == "OneOne"


def test_length_and_its_aliases(server: ServingProcess) -> None:
    answer = server.openai.completions.create(model=MODEL, prompt="a b c d e f", max_tokens=3, temperature=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("a b c", "length")
    limits: list[dict[str, Any]] = [{"max_tokens": 4}, {"max_completion_tokens": 4}]
    for limit in limits:
        chat = server.openai.chat.completions.create(model=MODEL, messages=HI, temperature=0, **limit)
        assert chat.choices[0].finish_reason == "length"
        assert chat.usage is not None
        assert chat.usage.completion_tokens == 4


def test_without_a_limit_the_context_is_a_chats_and_16_tokens_a_completions(server: ServingProcess) -> None:
    chat = server.openai.chat.completions.create(model=MODEL, messages=HI, temperature=0, extra_body={"ignore_eos": True})
    assert (chat.choices[0].finish_reason, chat.usage and chat.usage.total_tokens) == ("length", 512)
    text = server.openai.completions.create(model=MODEL, prompt="ab", temperature=0, extra_body={"ignore_eos": True})
    assert (text.choices[0].finish_reason, text.usage and text.usage.completion_tokens) == ("length", 16)
    long = server.openai.completions.create(model=MODEL, prompt=[5] * 505, temperature=0, extra_body={"ignore_eos": True})
    assert long.usage is not None
    assert long.usage.total_tokens == 512, "what the context leaves is less"


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 3.0, "n": 1.0},
        {"moderation": None, "a_field_of_next_year": None},
        {"priority": 0, "skip_special_tokens": True, "use_beam_search": False, "length_penalty": 1.0, "bad_words": []},
        {"logit_bias": {"5": -1}, "a_field_of_next_year": None},
    ],
    ids=lambda fields: ",".join(fields),
)
def test_what_asks_for_what_happens_anyway_is_accepted(server: ServingProcess, fields: dict[str, Any]) -> None:
    plain = server.http.post("/v1/completions", json={"prompt": "One, two", "temperature": 0, "max_tokens": 3})
    answer = server.http.post("/v1/completions", json={"prompt": "One, two", "temperature": 0, "max_tokens": 3, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == plain.json()["choices"]


def test_a_conversation_comes_back_with_what_clients_add(server: ServingProcess) -> None:
    first = {"role": "user", "content": "Hi", "id": "msg_1", "timestamp": 5, "cache_control": {"type": "ephemeral"}}
    second: dict[str, Any] = {"role": "assistant", "content": "Ho", "reasoning": "hm", "metadata": {}, "refusal": None, "tool_calls": []}
    body = {"messages": [first, second, *HI], "temperature": 0, "max_tokens": 5, "reasoning_effort": "low", "verbosity": "low"}
    answer = server.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    plain = [{"role": each["role"], "content": each["content"]} for each in (first, second)]
    expected = server.http.post("/v1/chat/completions", json={"messages": [*plain, *HI], "temperature": 0, "max_tokens": 5})
    assert answer.json()["choices"] == expected.json()["choices"]


def test_the_models_are_also_where_a_slash_too_many_leads(server: ServingProcess) -> None:
    assert server.http.get("/v1/models/").json() == server.http.get("/v1/models").json()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["zy do", ["nope", "zy do"]])
def test_stop_strings_end_the_text_before_them(server: ServingProcess, stop: Any, stream: bool) -> None:
    answer: Any = server.openai.completions.create(model=MODEL, prompt="The lazy dog sleeps", stop=stop, temperature=0, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    assert "".join(choice.text for choice in choices) == "The la"
    assert choices[-1].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("stop", "text"), [(END, "a b"), (f" b{END} c", "a"), (f"{END} nope", "a b c d")])
def test_special_tokens_that_nobody_sees_complete_stop_strings(server: ServingProcess, stop: str, text: str, stream: bool) -> None:
    answer: Any = server.openai.completions.create(model=MODEL, prompt=f"a b{END} c d", stop=stop, temperature=0, stream=stream, logprobs=1)
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    assert "".join(choice.text for choice in choices) == text
    assert choices[-1].finish_reason == "stop"


def test_stop_options_beyond_openais(server: ServingProcess) -> None:
    def complete(**extra: Any) -> tuple[str, str]:
        answer = server.openai.completions.create(model=MODEL, prompt="a b c d e", temperature=0, max_tokens=9, extra_body=extra)
        return answer.choices[0].text, answer.choices[0].finish_reason

    assert complete(stop=" c", include_stop_str_in_output=True) == ("a b c", "stop")
    assert complete(stop_token_ids=[ids("a c")[-1]]) == ("a b", "stop")
    assert complete(stop_token_ids=[ids("a c")[-1]], include_stop_str_in_output=True) == ("a b c", "stop")
    assert complete(stop=" b", min_tokens=3) == ("a b c d e", "stop")
    assert complete(ignore_eos=True)[1] == "length"
    assert complete(prompt=f"a b{EOS} c", stop=EOS, ignore_eos=True) == ("a b", "stop")
    assert complete(prompt=f"a b{EOS} c", stop=EOS, ignore_eos=True, include_stop_str_in_output=True) == (f"a b{EOS}", "stop")


def test_choices_differ_by_their_seed(server: ServingProcess) -> None:
    def complete(seed: int, n: int) -> list[str]:
        answer = server.openai.completions.create(
            model=MODEL, prompt="abcdefghijklmnopqrstuvwxyz", seed=seed, n=n, max_tokens=8, temperature=1
        )
        assert [choice.index for choice in answer.choices] == list(range(n))
        return [choice.text for choice in answer.choices]

    three = complete(7, 3)
    assert len(set(three)) == 3
    assert three == complete(7, 3)
    assert three == [*complete(7, 1), *complete(8, 1), *complete(9, 1)]


def test_without_a_seed_answers_differ(server: ServingProcess) -> None:
    prompt = "abcdefghijklmnopqrstuvwxyz"
    answers = [server.openai.completions.create(model=MODEL, prompt=prompt, max_tokens=20).choices[0].text for _ in range(2)]
    assert answers[0] != answers[1]


def test_streamed_choices_come_interleaved(server: ServingProcess) -> None:
    texts = {0: "", 1: "", 2: ""}
    reasons = []
    for chunk in server.openai.chat.completions.create(model=MODEL, messages=HI, temperature=0, n=3, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons.append(choice.finish_reason)
    assert set(texts.values()) == {CHAT_ECHO}
    assert [reason for reason in reasons if reason] == ["stop"] * 3


def test_chat_logprobs(server: ServingProcess) -> None:
    arguments: dict[str, Any] = {"model": MODEL, "messages": HI, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    answer = server.openai.chat.completions.create(**arguments)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert b"".join(bytes(entry.bytes or []) for entry in logprobs.content).decode() == f"<|im_start|>{CHAT_ECHO}"
    assert "bytes:\\xf0" in [entry.token for entry in logprobs.content]
    assert {entry.logprob for entry in logprobs.content} == {-0.5}
    assert {len(entry.top_logprobs) for entry in logprobs.content} == {2}
    streamed = [chunk.choices[0].logprobs for chunk in server.openai.chat.completions.create(**arguments, stream=True)]
    assert [entry for part in streamed if part for entry in part.content or []] == logprobs.content


def test_completion_logprobs(server: ServingProcess) -> None:
    answer = server.openai.completions.create(model=MODEL, prompt="a lazy 🎉 dog", logprobs=1, temperature=0)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.tokens[-1] == " dog" or "".join(logprobs.tokens).endswith("dog")
    whole = [(offset, token) for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True) if not token.startswith("bytes:")]
    assert all(answer.choices[0].text[offset:].startswith(token) for offset, token in whole)
    assert all(token in top for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True))


def test_logprobs_end_where_the_text_ends(server: ServingProcess) -> None:
    answer = server.openai.completions.create(model=MODEL, prompt="a b c d e", stop=" d", logprobs=0, temperature=0)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", " b", " c"]


def test_models(server: ServingProcess) -> None:
    (model,) = server.openai.models.list().data
    assert (model.id, model.owned_by, model.created) == (MODEL, "engine", 1_700_000_000)
    assert server.openai.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError):
        server.openai.models.retrieve("other/model")


def test_tokenize_and_detokenize(server: ServingProcess) -> None:
    text = "lazy 🎉"
    answer = server.http.post("/tokenize", json={"prompt": text}).json()
    assert answer == {"tokens": ids(text), "count": len(ids(text)), "max_model_len": 512, "token_strs": None}
    assert server.http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}
    chat = server.http.post("/tokenize", json={"messages": HI}).json()["tokens"]
    assert chat == ids(CHAT_PROMPT)
    bare = server.http.post("/tokenize", json={"messages": HI, "add_generation_prompt": False}).json()["tokens"]
    assert TOKENIZER.decode(bare, skip_special_tokens=False).endswith(f"{EOS}\n")


def test_what_a_client_needs_that_renders_prompts_itself(server: ServingProcess) -> None:
    info = server.http.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["model_max_length"]) == (BOS, EOS, 512)
    assert info["added_tokens_decoder"][str(TOKENIZER.token_to_id(EOS))] == {"content": EOS, "special": True}
    assert EOS in info["chat_template"]


def test_fields_that_only_describe_the_caller_are_accepted(server: ServingProcess) -> None:
    server.openai.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=1, user="me", metadata={"a": "b"}, store=False, service_tier="auto",
        response_format={"type": "text"}, tools=[], tool_choice="none", parallel_tool_calls=False,
    )  # fmt: skip


def test_the_async_client_and_many_at_once(server: ServingProcess) -> None:
    import asyncio

    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            asked = [client.completions.create(model=MODEL, prompt=f"number {i}", temperature=0) for i in range(32)]
            return [answer.choices[0].text for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask_all()) == [f"number {i}" for i in range(32)]


def test_metrics_count_what_happened(server: ServingProcess) -> None:
    def read() -> dict[str, float]:
        lines = server.http.get("/metrics").text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}

    before = read()
    server.openai.completions.create(model=MODEL, prompt="a b c", temperature=0)
    after = read()
    grown = {name: after[name] - before[name] for name in after}
    assert grown["engine_prompt_tokens_total"] == 3
    assert grown["engine_generation_tokens_total"] == 4
    assert grown['engine_request_success_total{finished_reason="stop"}'] == 1
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_prompt_tokens", "request_generation_tokens"):
        assert grown[f"engine_{name}_count"] == 1
    assert grown["engine_inter_token_latency_seconds_count"] == 3
    assert (grown["engine_request_prompt_tokens_sum"], grown["engine_request_generation_tokens_sum"]) == (3, 4)
    assert after["engine_num_requests_running"] == after["engine_num_requests_waiting"] == 0
    assert after["engine_jit_compilations_total"] == after["engine_worker_restarts_total"] == 0
    assert after['engine_startup_phase_seconds{phase="weights"}'] == 0.5
    names = {"kv_cache_usage_ratio", "num_preemptions_total", "prefix_cache_queries_total", "prefix_cache_hits_total"}
    assert names <= {name.removeprefix("engine_") for name in after}


def test_version(server: ServingProcess) -> None:
    from engine import __version__

    assert server.http.get("/version").json() == {"version": __version__}

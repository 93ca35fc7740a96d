"""Reading streamed answers: every token has its arrival, and nothing that went wrong stays unsaid."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.bench.stream import Exchange, Result, read_exchange
from engine.bench.workload import Request

REQUEST = Request("prompt", 5, 4)
DONE = b"data: [DONE]\n\n"


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text(value: str, **fields: Any) -> bytes:
    return event(choices=[{"index": 0, "text": value, **fields}])


def usage(completion: int, prompt: int = 5, **fields: Any) -> bytes:
    return event(choices=[], usage={"prompt_tokens": prompt, "completion_tokens": completion, **fields})


def read(*pieces: bytes, whole: bool = True, status: int = 200, failure: str | None = None, cut: bool = False) -> Result:
    """Piece i came at second 1 + i of a request that began at second 0.5; the end came with the last."""
    timed = [(1.0 + index, piece) for index, piece in enumerate(pieces)]
    exchange = Exchange(0.5, end_s=float(max(1, len(pieces))), status=status, pieces=timed, whole=whole, failure=failure, cut=cut)
    return read_exchange(exchange, REQUEST)


def test_a_plain_answer() -> None:
    result = read(text("a"), text("b"), text("c", finish_reason="length"), usage(3, prompt=6) + DONE)
    assert result == Result(
        prompt_tokens=6, output_tokens=3, start_s=0.5, token_times_s=[1.0, 2.0, 3.0], end_s=4.0, text="abc", wanted_tokens=4
    )
    assert result.completed


def test_chat_and_its_reasoning_are_text() -> None:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": "yes"}]
    result = read(*(event(choices=[{"index": 0, "delta": delta}]) for delta in deltas), usage(2) + DONE)
    assert (result.text, result.token_times_s) == ("hmyes", [2.0, 3.0])


@settings(max_examples=60)
@given(st.lists(st.integers(1, 400), max_size=12))
def test_where_the_pieces_are_cut_does_not_matter(cuts: list[int]) -> None:
    whole = b": a comment\n\n" + text("é", finish_reason=None) + text("b").replace(b"\n", b"\r\n") + usage(2) + DONE
    places = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    result = read(*(whole[begin:end] for begin, end in pairwise(places)))
    assert (result.text, result.output_tokens, result.error) == ("éb", 2, None)


def test_a_token_arrives_with_the_last_byte_of_its_event() -> None:
    first, second = text("a"), text("b")
    result = read(first + second[:-3], second[-3:], usage(2) + DONE)
    assert result.token_times_s == [1.0, 2.0]


def test_token_ids_say_how_many_came_together() -> None:
    result = read(text("abc", token_ids=[1, 2, 3]), text("", token_ids=[4]), usage(4) + DONE)
    assert result.token_times_s == [1.0, 1.0, 1.0, 2.0]


def test_a_count_with_every_event_says_how_many_came_together() -> None:
    def counted(value: str, total: int) -> bytes:
        return event(choices=[{"index": 0, "text": value}], usage={"prompt_tokens": 5, "completion_tokens": total})

    assert read(counted("a", 1), counted("bcd", 4), DONE).token_times_s == [1.0, 2.0, 2.0, 2.0]


def test_a_count_with_the_last_event_alone_is_the_whole_answers() -> None:
    last = event(choices=[{"index": 0, "text": "", "finish_reason": "length"}], usage={"prompt_tokens": 5, "completion_tokens": 2})
    assert read(text("a"), text("b"), last + DONE).token_times_s == [1.0, 2.0]


def test_tokens_that_nobody_placed_go_to_the_longest_texts() -> None:
    result = read(text("a"), text("a long one"), text("longer"), usage(5) + DONE)
    assert result.token_times_s == [1.0, 2.0, 2.0, 3.0, 3.0]
    assert read(text("a"), text("bb"), usage(7) + DONE).token_times_s == [1.0] * 3 + [2.0] * 4


def test_tokens_without_any_text_came_by_the_end() -> None:
    assert read(text(""), text("", finish_reason="length"), usage(2) + DONE).token_times_s == [3.0, 3.0]


def test_more_pieces_than_tokens() -> None:
    assert read(text("a"), text("b"), text("c"), usage(2) + DONE).token_times_s == [1.0, 2.0]


def test_without_a_count_every_piece_is_a_token() -> None:
    result = read(text("a"), text("b"), DONE)
    assert (result.output_tokens, result.prompt_tokens, result.error) == (2, 5, None)


def test_what_the_server_had_cached() -> None:
    assert read(text("a"), usage(1, prompt_tokens_details={"cached_tokens": 3}) + DONE).cached_tokens == 3


def test_a_finish_reason_and_a_whole_body_end_an_answer_too() -> None:
    assert read(text("a"), text("b", finish_reason="stop")).error is None
    assert read(text("a"), text("b", finish_reason="stop"), whole=False).error is not None


@pytest.mark.parametrize("whole", [True, False])
def test_a_stream_that_just_ends_is_an_error(whole: bool) -> None:
    result = read(text("a"), text("b")[:-5], whole=whole)
    assert result.error == "the stream ended before the answer did"
    assert not result.completed
    assert result.token_times_s == [1.0]


def test_an_answer_that_is_no_stream_is_an_error() -> None:
    assert read(b'{"choices": [{"text": "all at once"}]}').error == "the stream ended before the answer did"


def test_an_error_event_is_an_error() -> None:
    result = read(text("a"), event(error={"message": "out of memory"}) + DONE)
    assert result.error == 'the server says: {"message":"out of memory"}'


def test_an_event_that_is_not_json_is_an_error() -> None:
    assert read(b"data: {nonsense\n\n", DONE).error == "not an event: {nonsense"


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_a_refusal_shows_its_body(status: int) -> None:
    result = read(b'{"error": ', b'"the queue is full"}', status=status)
    assert result.error == f'HTTP {status}: {{"error": "the queue is full"}}'


def test_long_bodies_are_shortened() -> None:
    error = read(b"x" * 10_000, status=500).error
    assert error is not None
    assert len(error) < 300


def test_a_failure_of_the_connection_is_the_error() -> None:
    result = read(text("a"), failure="the connection broke: reset", whole=False)
    assert (result.error, result.output_tokens) == ("the connection broke: reset", 1)


def test_what_the_time_limit_cut_is_marked_and_is_no_error() -> None:
    result = read(text("a"), text("b"), text("c")[:9], whole=False, cut=True)
    assert (result.cut, result.error, result.completed) == (True, None, False)
    assert (result.output_tokens, result.prompt_tokens) == (2, 5)


def test_what_was_cut_before_anything_came() -> None:
    result = read(status=0, whole=False, cut=True)
    assert (result.cut, result.error, result.token_times_s) == (True, None, [])

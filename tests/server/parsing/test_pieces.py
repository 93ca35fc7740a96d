"""How the pieces of an answer travel from tokens to a chat client's events."""

import asyncio
import re
from typing import Any

import msgspec
from artifact_stand_in import BOS, EOS, byte_level_tokenizer, token_id
from chat_stream import ScriptedStream, events
from marks import Marks, MarksParsing

from engine.protocol import Output, SamplingParams
from engine.server.dialects.chat import _ChatStyle
from engine.server.dialects.params import GenerationParams
from engine.server.dialects.planning import Ask
from engine.server.dialects.schemas import ChatRequest
from engine.server.parsing.pieces import CallArguments, CallStart, Content, Message, Piece, Reasoning, call_ids, joined
from engine.server.text.assembler import Assembler, Delta, Plan
from engine.server.text.text import Text, TextSpec

TOKENIZER = byte_level_tokenizer()
TEXT = Text(TOKENIZER, TextSpec(special_tokens={}, bos_token_id=None, eos_token_ids=[], add_bos=False), None)
ANSWER = "<hm>so<f>1<g>23<"


def test_events_of_a_stream() -> None:
    async def scenario() -> None:
        stream = ScriptedStream(parsing=MarksParsing(), id="r")
        source = await stream.start()
        stream.sink.open()
        for character in ANSWER:
            stream.worker.put(character)
        stream.worker.put("!", finish_reason="stop")  # the token that ends a text is not shown
        found = [event["choices"][0] for event in events(*stream.client.chunks, await source.ended())]
        ids = call_ids("r-0")
        assert [choice["delta"] for choice in found] == [
            {"role": "assistant", "content": ""},
            {"reasoning": "s", "reasoning_content": "s"},
            {"reasoning": "o", "reasoning_content": "o"},
            {"tool_calls": [{"index": 0, "id": ids(0), "type": "function", "function": {"name": "f", "arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": "1"}}]},
            {"tool_calls": [{"index": 1, "id": ids(1), "type": "function", "function": {"name": "g", "arguments": ""}}]},
            {"tool_calls": [{"index": 1, "function": {"arguments": "2"}}]},
            {"tool_calls": [{"index": 1, "function": {"arguments": "3"}}]},
            {"content": "<"},
            {},
        ]
        assert [choice["finish_reason"] for choice in found] == [None] * 9 + ["tool_calls"]

    asyncio.run(scenario())


def test_what_a_slow_client_has_not_read_is_one_event_per_piece() -> None:
    async def scenario() -> None:
        stream = ScriptedStream(parsing=MarksParsing())
        source = await stream.start()
        for character in ANSWER:
            stream.worker.put(character)
        await source.begun()
        stream.sink.open()
        deltas = [event["choices"][0]["delta"] for event in events(*stream.client.chunks)]
        kinds = [next(iter(delta.get("tool_calls", [delta])[0])) for delta in deltas[1:]]
        assert kinds == ["reasoning", "function", "function", "function", "function"]
        assert deltas[1]["reasoning"] == "so"
        assert deltas[-1]["tool_calls"][0]["function"] == {"arguments": "23"}

    asyncio.run(scenario())


def test_a_whole_answer() -> None:
    style = _ChatStyle(
        TEXT.token_bytes, ChatRequest(messages=[]), Ask(prompts=[], params=GenerationParams(), param="messages", max_tokens=1)
    )

    def message(*pieces: Piece) -> Any:
        return msgspec.to_builtins(style.whole(0, Delta("", [], "tool_calls", list(pieces))))["message"]

    call = {"id": "i", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert message(Content("a")) == {"content": "a", "role": "assistant", "refusal": None}
    only_calls = message(CallStart(0, "i", "f"), CallArguments(0, "{"), CallArguments(0, "}"))
    assert (only_calls["content"], only_calls["tool_calls"]) == (None, [call])
    thought = message(Reasoning("h"), Content("a"), Reasoning("m"))
    assert (thought["content"], thought["reasoning"], thought["reasoning_content"]) == ("a", "hm", "hm")


def test_what_the_parser_sees_and_what_is_counted() -> None:
    """Special tokens only if it asked for them; reasoning tokens are those before which the text was reasoning."""
    seen: list[str] = []

    class Listening(Marks):
        def push(self, text: str) -> list[Piece]:
            seen.append(text)
            return super().push(text)

    bos, eos = token_id(TOKENIZER, BOS), token_id(TOKENIZER, EOS)
    plan = Plan(id="s", prompt=[1], sampling=SamplingParams(max_tokens=99), arrived=0.0, lists_tokens=False)
    assembler = Assembler(TEXT, plan, Listening(call_ids("s")), TEXT.special_tokens({EOS, "a"}))
    tokens = [bos, *TOKENIZER.encode("<hm>so<hm>a").ids, eos]
    deltas = [assembler.push(Output("s", [token])) for token in tokens[:-1]]
    deltas.append(assembler.push(Output("s", [eos], finish_reason="length")))
    assert "".join(seen) == f"<hm>so<hm>a{EOS}"
    assert assembler.reasoning_tokens == len(TOKENIZER.encode("so<hm>").ids)
    assert Message.of(Delta.joined(deltas).pieces or []).reasoning == "so"
    plain = Assembler(TEXT, plan)
    assert "".join(plain.push(Output("s", [token])).text for token in tokens) == "<hm>so<hm>a", "nothing of it stays behind"


def test_ids_are_those_of_the_sequence_and_the_index() -> None:
    ids = {call_ids(sequence)(index) for sequence in ("a-0", "a-1", "b-0") for index in range(3)}
    assert len(ids) == 9
    assert all(re.fullmatch("[a-z0-9]{9}", id) for id in ids)
    assert call_ids("a-0")(1) == call_ids("a-0")(1)


def test_joined_pieces() -> None:
    parts: list[Piece] = [Content("a"), Content("b"), Reasoning("c"), Content("d"), CallStart(0, "i", "f"), CallArguments(0, "{")]
    more: list[Piece] = [CallArguments(0, "}"), CallStart(1, "j", "g"), CallArguments(1, "{}")]
    whole = [Content("ab"), Reasoning("c"), Content("d"), CallStart(0, "i", "f"), CallArguments(0, "{}")]
    assert joined([*parts, *more]) == [*whole, *more[1:]]

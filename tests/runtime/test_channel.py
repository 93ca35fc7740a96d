"""Frames over a real socket pair: whole, split, many at once, to a slow reader and after the end."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.protocol import (
    HEADER_BYTES,
    Abort,
    Drain,
    Output,
    Phase,
    SamplingParams,
    Stats,
    StepDone,
    Submit,
    TokenRules,
    ToServer,
    body_length,
    decode_to_server,
    encode,
)
from engine.runtime.process.channel import Channel, FrameReader, Unreadable


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Channel]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, Channel(theirs)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


SUBMIT = Submit("a", [1, 2, 3], SamplingParams(max_tokens=4, token_rules=TokenRules.of({3: 1.5}), stop_token_ids=(7,)), generated=[9])


@given(sizes=st.lists(st.integers(0, 300), max_size=10), data=st.data())
def test_frames_survive_any_cut(sizes: list[int], data: st.DataObject) -> None:
    bodies = [bytes([index]) * size for index, size in enumerate(sizes)]
    stream = b"".join(len(body).to_bytes(4, "little") + body for body in bodies)
    reader = FrameReader()
    received = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        received += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert received == bodies


def test_messages_arrive_in_order(pair: tuple[socket.socket, Channel], pipe: tuple[int, int]) -> None:
    parent, channel = pair
    assert channel.receive() == []
    parent.sendall(encode(SUBMIT) + encode(Abort("b")) + encode(Drain()))
    assert channel.wait(unless=pipe[0])
    assert channel.receive() == [SUBMIT, Abort("b"), Drain()]
    assert channel.receive() == []


def test_a_malformed_request_is_told_apart_by_its_id(pair: tuple[socket.socket, Channel]) -> None:
    parent, channel = pair
    body = msgspec.msgpack.encode({"type": "Submit", "id": "a", "prompt": "not tokens", "params": {"max_tokens": 1}})
    parent.sendall(len(body).to_bytes(4, "little") + body + encode(Abort("b")))
    malformed, abort = channel.receive()
    assert isinstance(malformed, Unreadable)
    assert malformed.id == "a"
    assert "prompt" in malformed.error
    assert abort == Abort("b")


def test_nonsense_is_not_survived(pair: tuple[socket.socket, Channel]) -> None:
    parent, channel = pair
    body = msgspec.msgpack.encode([1, 2, 3])
    parent.sendall(len(body).to_bytes(4, "little") + body)
    with pytest.raises(msgspec.DecodeError):
        channel.receive()


def test_a_slow_reader_blocks_nobody_and_misses_nothing(pair: tuple[socket.socket, Channel]) -> None:
    parent, channel = pair
    sent = [StepDone([Output(f"s{index}", list(range(2000)))], Stats(steps_total=index)) for index in range(300)]
    for message in sent:
        channel.send(message)  # far more than the socket takes
    received: list[ToServer] = []

    def read() -> None:
        stream = parent.makefile("rb")
        while len(received) < len(sent):
            received.append(decode_to_server(stream.read(body_length(stream.read(HEADER_BYTES)))))
        stream.close()

    reader = threading.Thread(target=read)
    reader.start()
    channel.finish()
    reader.join()
    assert received == sent


def test_what_is_left_goes_when_there_is_room(pair: tuple[socket.socket, Channel]) -> None:
    parent, channel = pair
    message = Phase("x" * 3_000_000, 1.0)
    channel.send(message)
    received = bytearray()
    while channel.has_left:
        received += parent.recv(1 << 20)
        channel.flush()
    assert received, "the socket does not take all of it at once"
    parent.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            received += parent.recv(1 << 20)
    assert bytes(received) == encode(message)


def test_waiting_ends_when_nobody_waits_any_more(pair: tuple[socket.socket, Channel], pipe: tuple[int, int]) -> None:
    _, channel = pair
    reading, writing = pipe
    closer = threading.Thread(target=os.close, args=(writing,))
    closer.start()
    assert not channel.wait(unless=reading)
    closer.join()


def test_the_end_of_the_parent_is_noticed_everywhere(pair: tuple[socket.socket, Channel], pipe: tuple[int, int]) -> None:
    parent, channel = pair
    parent.close()
    assert channel.wait(unless=pipe[0])
    with pytest.raises(EOFError):
        channel.receive()
    with pytest.raises(EOFError):
        channel.send(Phase("a", 1.0))

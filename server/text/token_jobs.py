"""What is to be tokenized, as a value that another process can be given, and what it answers."""

from array import array
from collections.abc import Callable, Sequence

import msgspec

from .text import Text
from .whole_texts import Tokens

_IDS = "I"


class Prompts(msgspec.Struct, frozen=True, tag=True):
    """Prompts as they come; see `Text.encode_all`."""

    texts: Sequence[str]
    add_special_tokens: bool
    one_bos: bool

    def characters(self) -> int:
        return sum(map(len, self.texts))

    def run(self, text: Text) -> list[Tokens]:
        encoded = text.encode_all(self.texts, add_special_tokens=self.add_special_tokens, one_bos=self.one_bos)
        return [Tokens(ids) for ids in encoded]


class Conversation(msgspec.Struct, frozen=True, tag=True):
    """One prompt, rendered in parts."""

    parts: Sequence[str]
    add_special_tokens: bool

    def characters(self) -> int:
        return sum(map(len, self.parts))

    def run(self, text: Text) -> list[Tokens]:
        return [Tokens(text.encode_parts(self.parts, add_special_tokens=self.add_special_tokens))]


class WholeTexts(msgspec.Struct, frozen=True, tag=True):
    """Texts that are computed whole; see `Text.encode_texts`."""

    texts: Sequence[str]
    limit: int | None
    most: int | None = None
    keeps_end: bool = False

    def characters(self) -> int:
        return sum(map(len, self.texts))

    def run(self, text: Text) -> list[Tokens]:
        return text.encode_texts(self.texts, limit=self.limit, most=self.most, keeps_end=self.keeps_end)


class Pairs(msgspec.Struct, frozen=True, tag=True):
    """Pairs of texts; see `Text.encode_pairs`."""

    pairs: Sequence[tuple[str, str]]
    limit: int | None
    most_of_second: int | None = None

    def characters(self) -> int:
        return sum(len(first) + len(second) for first, second in self.pairs)

    def run(self, text: Text) -> list[Tokens]:
        return text.encode_pairs(self.pairs, limit=self.limit, most_of_second=self.most_of_second)


Job = Prompts | Conversation | WholeTexts | Pairs
_decode_job: Callable[[bytes], Job] = msgspec.msgpack.Decoder(Job).decode
_decode_answer = msgspec.msgpack.Decoder(list[tuple[bytes, int]]).decode


def pack_job(job: Job) -> bytes:
    """Raises UnicodeEncodeError for lone surrogates."""
    return msgspec.msgpack.encode(job)


def unpack_job(data: bytes) -> Job:
    return _decode_job(data)


def pack_answer(found: Sequence[Tokens]) -> bytes:
    return msgspec.msgpack.encode([(array(_IDS, tokens.ids).tobytes(), tokens.pair_start) for tokens in found])


def unpack_answer(data: bytes) -> list[Tokens]:
    """With ids in arrays: to make a million of Python's numbers takes the interpreter away from everybody else."""
    return [Tokens(array(_IDS, ids), pair_start) for ids, pair_start in _decode_answer(data)]

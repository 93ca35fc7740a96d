"""Texts and pairs of texts to the tokens that a model for whole texts wants, cut to a length where that is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer


@dataclass(frozen=True)
class Tokens:
    """ids: of a text, or of a pair whose second text begins at `pair_start`, as far as the tokenizer tells; else 0."""

    ids: Sequence[int]
    pair_start: int = 0


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], limit: int | None = None, *, most: int | None = None, keeps_end: bool = False
) -> list[Tokens]:
    """With the special tokens that the tokenizer puts around a text. limit: tokens in all. most: without the special ones.

    The end of a longer text is left out, its beginning if keeps_end.
    """
    room = _least(_room(limit, tokenizer.num_special_tokens_to_add(is_pair=False)), most)
    side = "left" if keeps_end else "right"
    return [Tokens(tokenizer.post_process(_cut(each, room, side)).ids) for each in _plain(tokenizer, texts)]


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], limit: int | None = None, *, most_of_second: int | None = None
) -> list[Tokens]:
    """Of pairs, likewise; the longer text of a pair is cut first. A text that is in several pairs is tokenized once."""
    different = list(dict.fromkeys(text for pair in pairs for text in pair))
    known = dict(zip(different, _plain(tokenizer, different), strict=True))
    room = _room(limit, tokenizer.num_special_tokens_to_add(is_pair=True))
    found = []
    for first, second in ((known[first], known[second]) for first, second in pairs):
        if most_of_second is not None and len(second) > most_of_second:
            second = _cut(_copy(tokenizer, second), most_of_second)
        if room is not None and len(first) + len(second) > room:
            first_room, second_room = _shares(len(first), len(second), room)
            first, second = _cut(_copy(tokenizer, first), first_room), _cut(_copy(tokenizer, second), second_room)
        joined = tokenizer.post_process(first, second)
        types = joined.type_ids
        found.append(Tokens(joined.ids, types.index(1) if 1 in types else 0))
    return found


def _plain(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Any]:
    """Without special tokens. Other threads run meanwhile."""
    encoded: list[Any] = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return encoded


def _copy(tokenizer: Tokenizer, encoding: Any) -> Any:
    return tokenizer.post_process(encoding, add_special_tokens=False)


def _room(limit: int | None, added: int) -> int | None:
    return None if limit is None else max(0, limit - added)


def _least(*counts: int | None) -> int | None:
    return min((count for count in counts if count is not None), default=None)


def _cut(encoding: Any, room: int | None, side: str = "right") -> Any:
    """side: the one that goes."""
    if room is not None and len(encoding) > room:
        encoding.truncate(room, direction=side)
    return encoding


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How much of `room` two texts get that do not fit together: the shorter one all, unless it has more than half."""
    half = room // 2
    if first <= half:
        return first, room - first
    return (room - second, second) if second <= room - half else (half, room - half)

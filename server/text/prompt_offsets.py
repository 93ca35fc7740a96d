"""Where the tokens of a prompt begin in its text."""

from collections.abc import Sequence

from .detokenizer import IncrementalDetokenizer
from .token_bytes import TokenBytes


def prompt_offsets(text: str, tokens: Sequence[int], token_bytes: TokenBytes) -> list[int]:
    """In characters. A character of several tokens is where the first of them begins; special tokens that the text lacks take no place.

    Where the tokenizer does not keep a text as it is, offsets are those in what it made of it, as far as the text goes.
    """
    detokenizer = IncrementalDetokenizer(token_bytes, continues=True)
    offsets, at = [], 0
    for token in tokens:
        offsets.append(min(at, len(text)))
        if token in token_bytes.special:
            piece = token_bytes[token].decode()
            at += len(piece) if text.startswith(piece, at) else 0
            continue
        piece = detokenizer.push(token)
        adds_space = token_bytes.leading_space and piece.startswith(" ") and not text.startswith(" ", at)
        at += len(piece) - adds_space
    return offsets

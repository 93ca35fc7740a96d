"""Tokens to text, one at a time."""

import codecs

from .token_bytes import TokenBytes


class IncrementalDetokenizer:
    """Turns a sequence's tokens into text as they come, in O(bytes of the token).

    The pieces joined are the whole text. A character spread over several tokens comes out
    with its last one, so half characters are never seen; bytes that can never become a
    character come out as U+FFFD, and a character still incomplete at the end is dropped.
    Special tokens stand for nothing. `continues` says that the text goes on from a prompt,
    where sentencepiece's leading space is a real one.
    """

    def __init__(self, token_bytes: TokenBytes, *, continues: bool = False) -> None:
        self._token_bytes = token_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._strip_space = token_bytes.leading_space and not continues

    def push(self, token: int) -> str:
        """The text that this token completes, possibly empty."""
        if token in self._token_bytes.special:
            return ""
        text = self._decode(self._token_bytes[token])
        if self._strip_space and text:
            self._strip_space = False
            return text.removeprefix(" ")
        return text

"""Tokens to text, one at a time."""

import codecs
from collections.abc import Mapping

from .token_bytes import TokenBytes


class IncrementalDetokenizer:
    """Turns a sequence's tokens into text as they come, in O(bytes of the token).

    The pieces joined are the whole text. A character spread over several tokens comes out
    with its last one, so half characters are never seen; bytes that can never become a
    character come out as U+FFFD, and a character still incomplete at the end is dropped.
    Special tokens stand for nothing, but for those in `shown`, with their texts. `continues` says that
    the text goes on from a prompt, where sentencepiece's leading space is a real one.
    """

    def __init__(self, token_bytes: TokenBytes, *, continues: bool = False, shown: Mapping[int, str] | None = None) -> None:
        self._token_bytes = token_bytes
        self._shown = shown or {}
        self._whole = token_bytes.whole
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._in_character = False
        self._strip_space = token_bytes.leading_space and not continues

    def push(self, token: int) -> str:
        """The text that this token completes, possibly empty."""
        text = None if self._in_character else self._whole.get(token)
        if text is None:
            text = self._decode(token)
        if self._strip_space and text:
            self._strip_space = False
            return text.removeprefix(" ")
        return text

    def _decode(self, token: int) -> str:
        if token in self._token_bytes.special:
            return self._shown.get(token, "")
        began_whole = not self._in_character
        text = self._decoder.decode(self._token_bytes[token])
        self._in_character = self._decoder.getstate()[0] != b""
        if began_whole and not self._in_character:
            self._whole[token] = text  # nothing before or after it mattered
        return text

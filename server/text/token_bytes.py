"""The bytes that each token stands for, read from the tokenizer's own decoder.

Working on bytes instead of on decoded strings is what makes streaming exact: a token may hold
half a character, and only bytes can be joined before they are decoded.
"""

import re
from typing import Any

import msgspec
from tokenizers import Tokenizer

from ...errors import UnsupportedModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's byte alphabet: printable bytes stand for themselves, the others for 256 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(shifted)}


_ALPHABET = _byte_level_alphabet()


class TokenBytes(dict[int, bytes]):
    """Token id -> bytes, filled on first use. Ids outside of the vocabulary stand for no bytes.

    `special` are the ids that a reader does not see, `special_texts` what they are called; `leading_space` is whether the tokenizer
    writes one space too many at the beginning of a text (sentencepiece does). `whole` has the
    texts of tokens that consist of whole characters, as far as they have been decoded yet.
    Raises UnsupportedModelError for a tokenizer whose decoder is of an unknown kind.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._model = tokenizer.model
        self._added = tokenizer.get_added_tokens_decoder()
        self.special_texts = {id: token.content for id, token in self._added.items() if token.special}
        self.special = frozenset(self.special_texts)
        self.leading_space = False
        self.whole: dict[int, str] = {}
        self._replacements: list[tuple[str, str]] = []
        self._byte_level = False
        self._byte_fallback = False
        self._continues: str | None = None
        """What pieces that go on with a word begin with, where others begin one."""
        for step in _decoder_steps(tokenizer):
            self._add_step(step)

    def _add_step(self, step: dict[str, Any]) -> None:
        match step:
            case {"type": "ByteLevel"}:
                self._byte_level = True
            case {"type": "ByteFallback"}:
                self._byte_fallback = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                self._replacements.append((old, new))
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
                self.leading_space = self.leading_space or start == 1
            case {"type": "WordPiece", "prefix": str(prefix)}:
                self._continues = prefix
                self.leading_space = True
            case {"type": "Metaspace", "replacement": str(old)}:
                self._replacements.append((old, " "))
                self.leading_space = step.get("prepend_scheme", "always") != "never"
            case _:
                raise UnsupportedModelError(
                    f"the tokenizer's decoder has a step that this version does not know: {step}",
                    hint="byte-level BPE, sentencepiece and WordPiece tokenizers are known",
                )

    def __missing__(self, id: int) -> bytes:
        token = self._tokenizer.id_to_token(id)
        self[id] = piece = b"" if token is None else self._to_bytes(id, token)
        return piece

    def _to_bytes(self, id: int, token: str) -> bytes:
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        if self._continues is not None:
            token = token.removeprefix(self._continues) if token.startswith(self._continues) else f" {token}"
        for old, new in self._replacements:
            token = token.replace(old, new)
        if self._byte_level and all(char in _ALPHABET for char in token) and not self._is_text(id, token):
            return bytes(_ALPHABET[char] for char in token)
        return token.encode()

    def _is_text(self, id: int, token: str) -> bool:
        """Whether a token is written as it reads: it was added, and no merges make it of bytes."""
        return id in self._added and [each.id for each in self._model.tokenize(token)] != [id]

    def name(self, id: int) -> str:
        """The token as text; one that is no whole text is written `bytes:\\xf0\\x9f`, as OpenAI does."""
        piece = self[id]
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    if tokenizer.decoder is None:
        return [{"type": "none"}]
    spec: dict[str, Any] = msgspec.json.decode(tokenizer.decoder.__getstate__())
    steps: list[dict[str, Any]] = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    return steps

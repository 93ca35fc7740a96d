"""What is asked of a server: prompts that no prefix cache has seen, of an exact number of tokens."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from ..errors import UsageError

TOKENIZER_FILE = "tokenizer.json"
_SPACES = ("Ġ", "▁")
"""How byte-level and SentencePiece vocabularies write the space before a word."""
_ATTEMPTS = 32
_LINES = 'every line is {"prompt": "...", "max_tokens": 64}'


@dataclass(frozen=True)
class Request:
    """One prompt and the length of the answer that is wanted, both in tokens."""

    prompt: str
    prompt_tokens: int
    max_tokens: int


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, of a directory that holds one, or of an artifact. Raises UsageError."""
    places = [path, path / TOKENIZER_FILE, path / "tokenizer" / TOKENIZER_FILE]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UsageError(f"{path} holds no {TOKENIZER_FILE}", hint="give --tokenizer a tokenizer.json, a model's directory or an artifact")
    try:
        tokenizer = Tokenizer.from_buffer(file.read_bytes())
    except Exception as error:  # tokenizers raises bare Exception for a file it cannot read
        raise UsageError(f"{file} is not a tokenizer: {error}", hint="give --tokenizer a tokenizer.json that `tokenizers` reads") from error
    # The file may carry the truncation of a training run, which would shorten prompts silently.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def random_requests(
    tokenizer: Tokenizer, count: int, prompt_tokens: tuple[int, int], output_tokens: tuple[int, int], seed: int, part: int = 0
) -> list[Request]:
    """`count` prompts of random words; lengths are drawn evenly from the ranges, both ends included.

    Every prompt encodes to exactly its `prompt_tokens`, special tokens included that the
    tokenizer itself adds, and no two begin with the same word: nothing of one helps another.
    The same arguments give the same requests; another `part` other words in the very same
    lengths. Raises UsageError if the vocabulary cannot do that.
    """
    lengths, source = random.Random(seed), random.Random(f"{seed} {part}")
    words = _words(tokenizer)
    if count > len(words):
        raise UsageError(
            f"{count} prompts cannot all begin differently: the tokenizer has {len(words)} whole words",
            hint="ask for fewer requests, or read prompts from a file",
        )
    sizes = [(lengths.randint(*prompt_tokens), lengths.randint(*output_tokens)) for _ in range(count)]
    firsts = source.sample(words, count)
    return [
        Request(_prompt(tokenizer, first, words, size, source), size, wanted) for first, (size, wanted) in zip(firsts, sizes, strict=True)
    ]


def read_requests(file: Path, tokenizer: Tokenizer, max_tokens: int) -> list[Request]:
    """The prompts of a .jsonl file: {"prompt": "...", "max_tokens": N} per line, the latter `max_tokens` if absent.

    Raises UsageError for a file or line that cannot be read.
    """
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", hint=_LINES) from error
    requests = [_read_line(file, number, line, tokenizer, max_tokens) for number, line in enumerate(lines, 1) if line.strip()]
    if not requests:
        raise UsageError(f"{file} holds no prompts", hint=_LINES)
    return requests


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str
    max_tokens: int | None = None


def _read_line(file: Path, number: int, line: bytes, tokenizer: Tokenizer, max_tokens: int) -> Request:
    try:
        read = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}, line {number}: {error}", hint=_LINES) from None
    return Request(read.prompt, _length(tokenizer, read.prompt), read.max_tokens or max_tokens)


def _words(tokenizer: Tokenizer) -> list[str]:
    """The vocabulary's tokens that are a space and a word, without the space, in an order that never changes."""
    tokens = (token[1:] for token in tokenizer.get_vocab() if token.startswith(_SPACES))
    return sorted({word for word in tokens if word.isascii() and word.isalpha()})


def _prompt(tokenizer: Tokenizer, first: str, words: Sequence[str], length: int, source: random.Random) -> str:
    """Random words, added or taken away at the end until the number of tokens is right."""
    # Some tokenizers put a space before every text themselves; a second one would be a token of its own.
    space = " " if _length(tokenizer, f" {first}") <= _length(tokenizer, first) else ""
    chosen = [first, *source.choices(words, k=length - 1)]
    for _ in range(_ATTEMPTS):
        text = space + " ".join(chosen)
        excess = _length(tokenizer, text) - length
        if excess == 0:
            return text
        if excess >= len(chosen):
            break
        chosen = chosen[:-excess] if excess > 0 else [*chosen, *source.choices(words, k=-excess)]
    raise UsageError(f"no prompt of exactly {length} tokens could be made with this tokenizer", hint="ask for longer prompts")


def _length(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text).ids)

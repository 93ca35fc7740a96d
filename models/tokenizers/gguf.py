"""The tokenizer of a GGUF file's metadata, rebuilt in the format of Hugging Face `tokenizers`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from ...errors import CheckpointError, UnsupportedModelError
from ..settings import Settings
from .files import TokenizerFiles
from .gguf_pre_tokenizers import PRE_TOKENIZERS

_AS_DIRECTORY = "give the model as a Hugging Face directory"
_DAMAGED = "the file is damaged; fetch it again"


class _TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# The special tokens that templates may name, by their keys.
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # spelled so in every file
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}

# Tokens that end a turn, or a document, in every vocabulary that has them (llama.cpp's llama-vocab.cpp names them too): files often
# declare one end of several. The first are control tokens whatever a file calls them: no text consists of them.
_CONTROL_ENDS = frozenset(
    {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|tool_response>"}
)
_ENDS = _CONTROL_ENDS | {"<end_of_turn>", "<turn|>", "<eos>", "[EOT]", "[EOS]", "<EOT>", "<end_of_utterance>", "<｜end▁of▁sentence｜>"}


def tokenizer_from_gguf(metadata: Mapping[str, Any], source: str) -> TokenizerFiles:
    """Builds the tokenizer of a GGUF file. source: the file's name.

    Raises UnsupportedModelError for a kind of tokenizer that cannot be stated exactly, CheckpointError for one
    that is missing or contradictory.
    """
    prefix = "tokenizer.ggml."
    settings = Settings({key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}, source)
    model = settings.text("model")
    build = _BUILDERS.get(model)
    if build is None:
        raise UnsupportedModelError(f"{source}: tokenizers of type {model!r} are not supported", hint=f"{', '.join(_BUILDERS)} are")
    if settings.flag("add_eos_token", False):
        raise UnsupportedModelError(
            f"{source}: a tokenizer that ends every text with a token (add_eos_token) is not supported", hint=_AS_DIRECTORY
        )
    vocabulary = _Vocabulary.read(settings)
    tokenizer, add_bos = build(settings, vocabulary)
    tokenizer.add_special_tokens(vocabulary.added(_TokenType.CONTROL, _TokenType.UNKNOWN, special=True))
    tokenizer.add_tokens(vocabulary.added(_TokenType.USER_DEFINED, special=False))
    bos_id = vocabulary.id("bos_token_id")
    template = metadata.get("tokenizer.chat_template")
    return TokenizerFiles(
        tokenizer_json=tokenizer.to_str(),
        chat_template=template if isinstance(template, str) else None,
        size=len(vocabulary.tokens),
        special_tokens={name: vocabulary.tokens[id] for name, key in _NAMED.items() if (id := vocabulary.id(key)) is not None},
        bos_id=bos_id,
        eos_ids=vocabulary.ends(),
        add_bos=settings.flag("add_bos_token", add_bos) and bos_id is not None,
    )


@dataclass(frozen=True, kw_only=True)
class _Vocabulary:
    """Tokens by id, their types, and the settings that refer to them."""

    tokens: list[str]
    types: Sequence[float]
    settings: Settings

    @classmethod
    def read(cls, settings: Settings) -> "_Vocabulary":
        tokens = settings.strings("tokens")
        types = settings.numbers("token_type") if "token_type" in settings else [_TokenType.NORMAL] * len(tokens)
        if len(types) != len(tokens):
            raise CheckpointError(f"{settings.source}: {len(types)} token types for {len(tokens)} tokens", hint=_DAMAGED)
        types = [_TokenType.CONTROL if token in _CONTROL_ENDS else type for token, type in zip(tokens, types, strict=True)]
        return cls(tokens=tokens, types=types, settings=settings)

    def id(self, name: str) -> int | None:
        if name not in self.settings:
            return None
        value = self.settings.integer(name)
        if not 0 <= value < len(self.tokens):
            raise CheckpointError(f"{self.settings.source}: {name} is {value}, and there are {len(self.tokens)} tokens", hint=_DAMAGED)
        return value

    def ends(self) -> tuple[int, ...]:
        """Tokens that end a text: those that are declared, and those that are known to."""
        declared = [id for name in ("eos_token_id", "eot_token_id", "eom_token_id") if (id := self.id(name)) is not None]
        known = [id for id, token in enumerate(self.tokens) if token in _ENDS and self.types[id] == _TokenType.CONTROL]
        if "<|return|>" in (self.tokens[id] for id in known):  # it ends a turn of several messages, each with an end of its own
            known = [id for id in known if self.tokens[id] != "<|end|>"]
        return tuple(dict.fromkeys((*declared, *known)))

    def added(self, *types: _TokenType, special: bool) -> list[AddedToken]:
        """The tokens of these types, which are found in text before anything else is."""
        tokens = zip(self.tokens, self.types, strict=True)
        return [AddedToken(token, special=special, normalized=False) for token, type in tokens if type in types]

    def by_token(self) -> dict[str, int]:
        numbered = {token: index for index, token in enumerate(self.tokens)}
        if len(numbered) != len(self.tokens):
            raise CheckpointError(
                f"{self.settings.source}: {len(self.tokens) - len(numbered)} tokens of the vocabulary occur twice", hint=_DAMAGED
            )
        return numbered


def _byte_level_bpe(settings: Settings, vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    name = settings.text("pre", "default")
    pre_tokenizer = PRE_TOKENIZERS.get(name)
    if pre_tokenizer is None:
        raise UnsupportedModelError(
            f"{settings.source}: the pre-tokenizer {name!r} (tokenizer.ggml.pre) is not supported",
            hint=f"supported: {', '.join(PRE_TOKENIZERS)}; or give the model as a Hugging Face directory",
        )
    model = _bpe(settings, vocabulary.by_token(), _merges(settings), ignore_merges=pre_tokenizer.whole_words)
    tokenizer = Tokenizer(model)
    if pre_tokenizer.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre_tokenizer.add_bos


def _sentencepiece_bpe(settings: Settings, vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """A SentencePiece BPE model, whose merges follow from its scores; spaces are written as U+2581."""
    if settings.flag("remove_extra_whitespaces", False) or settings.raw("precompiled_charsmap"):
        raise UnsupportedModelError(
            f"{settings.source}: a SentencePiece tokenizer that normalizes text is not supported", hint=_AS_DIRECTORY
        )
    numbered = vocabulary.by_token()
    merges = _merges_by_score(settings, vocabulary, numbered)
    return _of_characters(settings, vocabulary, numbered, merges, prefix=settings.flag("add_space_prefix", True)), True


def _gemma4_bpe(settings: Settings, vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """As of a SentencePiece model, but with merges in an order of their own."""
    merges, prefix = _merges(settings), settings.flag("add_space_prefix", False)
    return _of_characters(settings, vocabulary, vocabulary.by_token(), merges, prefix=prefix), True


def _of_characters(
    settings: Settings, vocabulary: _Vocabulary, numbered: dict[str, int], merges: list[tuple[str, ...]], *, prefix: bool
) -> Tokenizer:
    """A BPE over the characters of a whole text, in which spaces are written as U+2581 and what is unknown as bytes. prefix: whether a text
    gets a space in front."""
    unknown_id = vocabulary.id("unknown_token_id")
    unknown = vocabulary.tokens[unknown_id] if unknown_id is not None else None
    tokenizer = Tokenizer(_bpe(settings, numbered, merges, byte_fallback=True, fuse_unk=True, unk_token=unknown))
    space = normalizers.Replace(" ", "▁")
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
        tokenizer.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = space
        tokenizer.decoder = decoders.Sequence(back)
    return tokenizer


def _merges(settings: Settings) -> list[tuple[str, ...]]:
    return [tuple(merge.split(" ", 1)) for merge in settings.strings("merges")]


def _merges_by_score(settings: Settings, vocabulary: _Vocabulary, numbered: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Every way to make a token of two others, the token with the highest score first, in the order of `transformers`' converter."""
    scores = settings.numbers("scores")
    if len(scores) != len(vocabulary.tokens):
        raise CheckpointError(f"{settings.source}: {len(scores)} scores for {len(vocabulary.tokens)} tokens", hint=_DAMAGED)
    mergeable = (_TokenType.NORMAL, _TokenType.UNUSED)
    pairs = [
        (scores[index], (token[:cut], token[cut:]))
        for index, token in enumerate(vocabulary.tokens)
        if vocabulary.types[index] in mergeable
        for cut in range(1, len(token))
        if token[:cut] in numbered and token[cut:] in numbered
    ]
    pairs.sort(key=lambda pair: (pair[0], len(pair[1][0])), reverse=True)
    return [pair for _, pair in pairs]


def _bpe(settings: Settings, vocabulary: dict[str, int], merges: list[Any], **options: Any) -> BPE:
    try:
        return BPE(vocabulary, merges, **options)
    except Exception as error:  # the library raises nothing more specific
        raise CheckpointError(f"{settings.source}: vocabulary and merges do not fit: {error}", hint="the file is damaged") from error


_BUILDERS: dict[str, Callable[[Settings, _Vocabulary], tuple[Tokenizer, bool]]] = {
    "gpt2": _byte_level_bpe,
    "llama": _sentencepiece_bpe,
    "gemma4": _gemma4_bpe,
}

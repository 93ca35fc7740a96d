"""Special and added tokens that stand beside tokenizer.json: every way in which Hugging Face directories declare them.

What counts is what `transformers` makes of the same files (`PreTrainedTokenizerBase._from_pretrained` of version 5):
`added_tokens_decoder` of tokenizer_config.json or, without it, special_tokens_map.json and added_tokens.json; every
setting called `..._token`; `extra_special_tokens`, formerly `additional_special_tokens`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ...errors import CheckpointError
from ..storage.json_file import read_json_if_there

CONFIG = "tokenizer_config.json"
_MAP, _ADDED = "special_tokens_map.json", "added_tokens.json"
# New tokens get their ids in this order.
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_DAMAGED = "the file was edited or damaged; fetch the checkpoint again"


@dataclass(frozen=True, kw_only=True)
class DeclaredTokens:
    """named: by their names, such as `eos_token`. extra: special tokens without one. added: by their ids, which `source` gives."""

    named: dict[str, AddedToken]
    extra: list[AddedToken]
    added: dict[int, AddedToken]
    source: str

    @classmethod
    def read(cls, directory: Path, config: Mapping[str, Any]) -> "DeclaredTokens":
        """config: what tokenizer_config.json holds. Raises CheckpointError for a declaration that says nothing of a token."""
        named, extra = _special(config, CONFIG)
        if "added_tokens_decoder" in config:
            return cls(named=_in_order(named), extra=extra, added=_by_id(config["added_tokens_decoder"] or {}), source=CONFIG)
        more_named, more_extra = _special(read_json_if_there(directory / _MAP), _MAP)
        named, extra = _in_order(named | more_named), [*extra, *more_extra]
        special = {token.content for token in (*named.values(), *extra)}
        return cls(named=named, extra=extra, added=_by_text(read_json_if_there(directory / _ADDED), special), source=_ADDED)

    def add_to(self, tokenizer: Tokenizer) -> None:
        """Adds what the tokenizer lacks and gives what it has the declared flags. Raises CheckpointError if an id is another."""
        known = tokenizer.get_added_tokens_decoder().values()
        unchanged = {repr(token) for token in known}
        named = {token.content for token in self.named.values()}
        declared = [token for _, token in sorted(self.added.items()) if repr(token) not in unchanged]
        for token in declared:
            token.special = token.special or token.content in named
        texts = {token.content for token in (*known, *declared)}
        tokenizer.add_tokens([*declared, *(token for token in (*self.named.values(), *self.extra) if token.content not in texts)])
        for number, token in self.added.items():
            if (actual := tokenizer.token_to_id(token.content)) != number:
                raise CheckpointError(
                    f"{self.source} gives token {token.content!r} the id {number}, tokenizer.json gives it {actual}",
                    hint="the two files are of different checkpoints",
                )


def _special(values: Mapping[str, Any], source: str) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """Special tokens with and without a name."""
    named = {name: value for name, value in values.items() if name.endswith("_token") and isinstance(value, str | dict)}
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        named, extra = named | extra, []
    if not isinstance(extra, list):
        raise CheckpointError(f"{source} has extra_special_tokens that are no list: {extra!r}", hint=_DAMAGED)
    return {name: _special_token(value, f"{source}: {name}") for name, value in named.items()}, [
        _special_token(value, f"{source}: extra_special_tokens") for value in extra
    ]


def _special_token(value: Any, where: str) -> AddedToken:
    token = AddedToken(value, special=True) if isinstance(value, str) else _token(value, where)
    token.special = True
    return token


def _in_order(named: Mapping[str, AddedToken]) -> dict[str, AddedToken]:
    return {name: named[name] for name in (*(name for name in _NAMES if name in named), *(name for name in named if name not in _NAMES))}


def _by_id(declared: Any) -> dict[int, AddedToken]:
    where = f"{CONFIG}: added_tokens_decoder"
    if not isinstance(declared, dict) or not all(number.isdecimal() for number in declared):
        raise CheckpointError(f"{where} does not hold tokens by their ids", hint=_DAMAGED)
    return {int(number): _token(entry, where) for number, entry in declared.items()}


def _by_text(ids: Mapping[str, Any], special: set[str]) -> dict[int, AddedToken]:
    if not all(type(number) is int for number in ids.values()):
        raise CheckpointError(f"{_ADDED} does not hold ids by their tokens", hint=_DAMAGED)
    return {number: AddedToken(text, special=text in special) for text, number in ids.items()}


def _token(value: Any, where: str) -> AddedToken:
    """From its fields; a token is normalized unless it is special or says otherwise."""
    try:
        return _from_fields(**{name: field for name, field in value.items() if name != "__type"})
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"{where} has a token that cannot be used: {value!r}", hint=_DAMAGED) from error


def _from_fields(
    *,
    content: str,
    special: bool = False,
    normalized: bool | None = None,
    lstrip: bool = False,
    rstrip: bool = False,
    single_word: bool = False,
) -> AddedToken:
    normalized = not special if normalized is None else normalized
    return AddedToken(content, special=special, normalized=normalized, lstrip=lstrip, rstrip=rstrip, single_word=single_word)

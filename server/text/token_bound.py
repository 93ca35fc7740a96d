"""How few tokens a text can have, known before it is tokenized: a text that cannot fit is not worth seconds of work."""

import json
from typing import Any

from tokenizers import Tokenizer, models

_KEEPS_EVERYTHING = frozenset({"ByteLevel", "Digits", "Metaspace", "Prepend"})


class TokenBound:
    """No token stands for more characters than the longest one, unless the tokenizer drops or joins characters; then nothing is known."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._longest: int | None = None

    def least(self, text: str) -> int:
        """A number of tokens that `text` is not shorter than; 0 if nothing can be said."""
        if self._longest is None:
            self._longest = _longest_token(self._tokenizer)
        return -(-len(text) // self._longest) if self._longest else 0


def _longest_token(tokenizer: Tokenizer) -> int:
    """In characters; 0 if it says nothing. One token after the other, so that other threads get their turns."""
    model = tokenizer.model
    stages = [*_stages(tokenizer.normalizer), *_stages(tokenizer.pre_tokenizer)]
    absorbs = any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values())
    if not isinstance(model, models.BPE) or absorbs or not all(map(_keeps_everything, stages)):
        return 0
    if model.fuse_unk and not model.byte_fallback:  # what it does not know becomes one token, however long
        return 0
    return max((len(tokenizer.id_to_token(id) or "") for id in range(tokenizer.get_vocab_size(with_added_tokens=True))), default=0)


def _stages(component: Any) -> list[dict[str, Any]]:
    """Of a normalizer or pre-tokenizer, None for none."""
    return [] if component is None else _flat(json.loads(component.__getstate__()))


def _flat(spec: dict[str, Any]) -> list[dict[str, Any]]:
    inner = spec.get("normalizers", spec.get("pretokenizers"))
    return [spec] if inner is None else [stage for each in inner for stage in _flat(each)]


def _keeps_everything(stage: dict[str, Any]) -> bool:
    match stage:
        case {"type": "Split", "behavior": behavior}:
            return bool(behavior != "Removed")
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            return len(content) >= len(pattern)
    return stage["type"] in _KEEPS_EVERYTHING

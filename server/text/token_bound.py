"""How few tokens a text can have, known before it is tokenized: a text that cannot fit is not worth seconds of work."""

import json
from typing import Any

from tokenizers import Tokenizer

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
    """In characters; 0 for a tokenizer of which it says nothing."""
    spec = json.loads(tokenizer.to_str())
    stages = [stage for name in ("normalizer", "pre_tokenizer") for stage in _stages(spec[name])]
    absorbs = any(token["lstrip"] or token["rstrip"] for token in spec["added_tokens"])
    kind = spec["model"].get("type")
    joins = (kind == "Unigram" or spec["model"].get("fuse_unk")) and not spec["model"].get("byte_fallback")  # what it does not know
    if kind not in ("BPE", "Unigram") or absorbs or joins or not all(map(_keeps_everything, stages)):
        return 0
    return max(map(len, tokenizer.get_vocab(with_added_tokens=True)), default=0)


def _stages(spec: dict[str, Any] | None) -> list[dict[str, Any]]:
    if spec is None:
        return []
    inner = spec.get("normalizers", spec.get("pretokenizers"))
    return [spec] if inner is None else [stage for each in inner for stage in _stages(each)]


def _keeps_everything(stage: dict[str, Any]) -> bool:
    match stage:
        case {"type": "Split", "behavior": behavior}:
            return bool(behavior != "Removed")
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            return len(content) >= len(pattern)
    return stage["type"] in _KEEPS_EVERYTHING

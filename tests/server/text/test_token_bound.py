"""A text never has fewer tokens than its bound says, whatever the tokenizer does to it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_checkpoints import train_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from engine.server.text.token_bound import TokenBound

BYTE_LEVEL = train_tokenizer()


LETTERS = ["<unk>", "▁", *"abcdefgh"]


def words(*, fuse_unk: bool = False, **changes: Any) -> Tokenizer:
    """Letters, and spaces as sentencepiece has them."""
    vocab = {token: id for id, token in enumerate([*LETTERS, "ab", "abc"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("a", "b"), ("ab", "c")], unk_token="<unk>", fuse_unk=fuse_unk))
    tokenizer.pre_tokenizer = changes.get("pre_tokenizer", pre_tokenizers.Metaspace())
    if "normalizer" in changes:
        tokenizer.normalizer = changes["normalizer"]
    tokenizer.add_tokens(changes.get("added", []))
    return tokenizer


def unigrams() -> Tokenizer:
    return Tokenizer(models.Unigram([(token, -3.0) for token in LETTERS], unk_id=0, byte_fallback=False))


TOKENIZERS = {
    "byte level": BYTE_LEVEL,
    "sentencepiece": words(),
    "replacing": words(normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), pre_tokenizer=None),
    "dropping": words(pre_tokenizer=pre_tokenizers.Whitespace()),
    "splitting away": words(pre_tokenizer=pre_tokenizers.Split(Regex("a+"), "removed")),
    "shortening": words(normalizer=normalizers.Replace("aaa", "a")),
    "composing": words(normalizer=normalizers.NFKC()),
    "joining": words(fuse_unk=True),
    "unigrams": unigrams(),
    "absorbing": words(added=[AddedToken("<mask>", lstrip=True)]),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(alphabet="abcdefgh  <mask>é", max_size=300))
def test_a_bound_is_never_too_high(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    assert TokenBound(tokenizer).least(text) <= len(tokenizer.encode(text).ids)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_nothing_is_said_where_characters_are_lost(name: str) -> None:
    least = TokenBound(TOKENIZERS[name]).least("abcdefgh" * 100)
    assert (least > 0) is (name in ("byte level", "sentencepiece", "replacing"))
    if name == "byte level":
        longest = max(map(len, json.loads(BYTE_LEVEL.to_str())["model"]["vocab"]))
        assert least == -(-800 // longest)


@pytest.mark.parametrize(("name", "text"), [("joining", "é" * 999), ("unigrams", "é" * 999), ("absorbing", " " * 999 + "<mask>")])
def test_characters_that_become_one_token(name: str, text: str) -> None:
    assert len(TOKENIZERS[name].encode(text).ids) <= 2
    assert TokenBound(TOKENIZERS[name]).least(text) == 0

"""Streaming tokens to text: exact, never half a character."""

import pytest
from artifact_stand_in import byte_level_tokenizer, sentencepiece_tokenizer, token_id
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders

from engine.errors import UnsupportedModelError
from engine.server.text.detokenizer import IncrementalDetokenizer
from engine.server.text.text import Text, TextSpec
from engine.server.text.token_bytes import TokenBytes

BYTE_LEVEL, SENTENCEPIECE = byte_level_tokenizer(), sentencepiece_tokenizer()
TOKENIZERS = [pytest.param(BYTE_LEVEL, id="byte-level"), pytest.param(SENTENCEPIECE, id="sentencepiece")]
TEXTS = ["hello", "a quick dog", "naïve 東京 🎉 и 👨‍👩‍👧", "  two  spaces\n\n\ttab", "\U0010ffff", "e\u0301"]


def pieces(tokenizer: Tokenizer, tokens: list[int], *, continues: bool = False) -> list[str]:
    detokenizer = IncrementalDetokenizer(TokenBytes(tokenizer), continues=continues)
    return [detokenizer.push(token) for token in tokens]


def text_of(tokenizer: Tokenizer) -> Text:
    return Text(tokenizer, TextSpec(special_tokens={}, bos_token_id=None, eos_token_ids=[], add_bos=False), None)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("skip", [False, True])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_whole_texts_are_decoded_as_the_tokenizer_does(tokenizer: Tokenizer, skip: bool, text: str) -> None:
    tokens = tokenizer.encode(f"{text}<|im_end|></s>{text}").ids
    assert text_of(tokenizer).decode(tokens, skip_special_tokens=skip) == tokenizer.decode(tokens, skip_special_tokens=skip)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_joined_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text).ids
    assert len(tokens) < len(text.encode()) + 2
    parts = pieces(tokenizer, tokens)
    assert "".join(parts) == text
    assert "\ufffd" not in "".join(parts)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(text: str) -> None:
    tokens = BYTE_LEVEL.encode(text).ids
    special = TokenBytes(BYTE_LEVEL).special
    if not special & set(tokens):
        assert "".join(pieces(BYTE_LEVEL, tokens)) == text


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1)))
@example([BYTE_LEVEL.token_to_id("í"), BYTE_LEVEL.token_to_id("¡")])
def test_any_tokens_give_what_the_tokenizer_gives(tokens: list[int]) -> None:
    """Up to a character left incomplete at the end, which the tokenizer shows as U+FFFD: once, or for each byte of half a surrogate."""
    whole = BYTE_LEVEL.decode(tokens, skip_special_tokens=True)
    streamed = "".join(pieces(BYTE_LEVEL, tokens))
    assert whole.startswith(streamed)
    assert whole[len(streamed) :] in ("", "\ufffd", "\ufffd\ufffd")


def test_a_character_comes_with_its_last_token() -> None:
    tokens = BYTE_LEVEL.encode("🎉").ids
    assert len(tokens) == 4
    assert pieces(BYTE_LEVEL, tokens) == ["", "", "", "🎉"]
    assert pieces(BYTE_LEVEL, tokens[:3]) == ["", "", ""]


def test_bytes_that_are_no_text_are_marked_and_do_not_block_what_follows() -> None:
    emoji, letter = BYTE_LEVEL.encode("🎉").ids, BYTE_LEVEL.encode("x").ids
    assert pieces(BYTE_LEVEL, [*emoji[:2], *letter]) == ["", "", "\ufffdx"]


@pytest.mark.parametrize("word", ["größer", "đö", "nač", "ĠĊ", "naïve", "<ö>"])
def test_an_added_token_is_its_text(word: str) -> None:
    """Whatever its letters stand for in the alphabet of bytes."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens([AddedToken(word)])
    tokens = tokenizer.encode(f"a{word} b").ids
    assert token_id(tokenizer, word) in tokens
    assert "".join(pieces(tokenizer, tokens)) == f"a{word} b"
    assert text_of(tokenizer).decode(tokens) == f"a{word} b"


def test_an_added_token_that_merges_make_is_still_bytes() -> None:
    tokenizer = byte_level_tokenizer()
    space = token_id(tokenizer, "Ġthe")
    tokenizer.add_tokens([AddedToken("Ġthe"), AddedToken("č")])
    assert pieces(tokenizer, [space, token_id(tokenizer, "č")]) == [" the", "\r"]


def test_special_tokens_are_not_shown() -> None:
    tokens = [token_id(BYTE_LEVEL, "<|im_start|>"), *BYTE_LEVEL.encode("x").ids, token_id(BYTE_LEVEL, "<|im_end|>")]
    assert pieces(BYTE_LEVEL, tokens) == ["", "x", ""]


def test_sentencepiece_leading_space_belongs_to_a_continuation_only() -> None:
    tokens = SENTENCEPIECE.encode("hello hello").ids
    assert pieces(SENTENCEPIECE, tokens) == ["hello", " hello"]
    assert pieces(SENTENCEPIECE, tokens, continues=True) == [" hello", " hello"]
    start = token_id(SENTENCEPIECE, "<s>")
    assert pieces(SENTENCEPIECE, [start, *tokens]) == ["", "hello", " hello"]


def test_metaspace_decoder() -> None:
    tokenizer = sentencepiece_tokenizer()
    tokenizer.decoder = decoders.Metaspace()
    assert "".join(pieces(tokenizer, tokenizer.encode("hello hello").ids)) == "hello hello"


def test_tokens_beyond_the_vocabulary_are_empty() -> None:
    assert pieces(BYTE_LEVEL, [10**6]) == [""]


def test_names_of_tokens_tell_partial_characters_apart() -> None:
    table = TokenBytes(BYTE_LEVEL)
    assert [table.name(token) for token in BYTE_LEVEL.encode("🎉").ids] == [
        "bytes:\\xf0",
        "bytes:\\x9f",
        "bytes:\\x8e",
        "bytes:\\x89",
    ]
    assert b"".join(table[token] for token in BYTE_LEVEL.encode("東 x").ids) == "東 x".encode()
    assert TokenBytes(SENTENCEPIECE).name(token_id(SENTENCEPIECE, "<0xC3>")) == "bytes:\\xc3"


def test_an_unknown_decoder_is_refused() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.decoder = decoders.CTC()
    with pytest.raises(UnsupportedModelError, match="CTC"):
        TokenBytes(tokenizer)

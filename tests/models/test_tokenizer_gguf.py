"""Tokenizers rebuilt from GGUF metadata."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from random_checkpoints import train_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import generate_merges

from engine.errors import CheckpointError, UnsupportedModelError
from engine.models.open import open_checkpoint
from engine.models.tokenizers.gguf import tokenizer_from_gguf

TEXTS = [
    "Hello world! 123",
    "def f(x):\n\treturn x ** 2  # π ≈ 3.14159\r\n\r\n",
    "日本語 🙂🙂 emoji, Straße, naïve façade",
    "١٢٣ 2026-11-21, ½ and ²",
    "e\u0301 is not é",
    "  leading, trailing  \n\n\n and\u00a0others \t",
    "I'll, you're, WE'VE; 'tis",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a <| im_start |> that is not special",
    "",
    "\x00\x01\x7f",
]


def byte_level(**changes: Any) -> dict[str, Any]:
    """GGUF metadata of a byte-level tokenizer."""
    trained = json.loads(train_tokenizer().to_str())
    tokens = [token for token, _ in sorted(trained["model"]["vocab"].items(), key=lambda item: item[1])]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in trained["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    changed = metadata | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return {name: value for name, value in changed.items() if value is not None}


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """GGUF metadata of a SentencePiece model: specials, 256 bytes, characters, then pieces by falling score."""
    words = [
        "▁",
        "e",
        "t",
        "a",
        "h",
        "o",
        "n",
        "l",
        "r",
        "s",
        "d",
        "é",
        "1",
        "2",
        "▁t",
        "he",
        "▁the",
        "an",
        "▁an",
        "▁and",
        "ll",
        "ell",
        "hell",
        "▁hell",
    ]
    words += ["▁hello", "hello", "▁w", "or", "ld", "▁wor", "▁world", "w", "▁▁", "▁▁▁▁", "12", "</tool>"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(words) - 1), 4]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(index) for index in range(len(words))],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    changed = metadata | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return {name: value for name, value in changed.items() if value is not None}


def build(metadata: dict[str, Any]) -> Tokenizer:
    tokenizer: Tokenizer = Tokenizer.from_str(tokenizer_from_gguf(metadata, "model.gguf").tokenizer_json)
    return tokenizer


class TestByteLevel:
    def test_is_the_tokenizer_it_was_made_from(self) -> None:
        original, rebuilt = train_tokenizer(), build(byte_level())
        for text in TEXTS:
            assert rebuilt.encode(text).ids == original.encode(text).ids
            assert rebuilt.decode(rebuilt.encode(text).ids, skip_special_tokens=False) == text

    @given(st.text())
    @settings(deadline=None)
    def test_every_text_survives(self, text: str) -> None:
        for pre in ("gpt-2", "smollm", "llama-bpe", "tekken"):
            rebuilt = _BUILT.setdefault(pre, build(byte_level(pre=pre)))
            assert rebuilt.decode(rebuilt.encode(text).ids, skip_special_tokens=False) == text

    @pytest.mark.parametrize(
        ("pre", "words"),
        [
            ("gpt-2", ["It", "'s", "Ġ2026", ",", "Ġ", "ĠWE", "'", "VE", "ĊĊ", "Ġx"]),
            ("smollm", ["It", "'s", "Ġ", "2", "0", "2", "6", ",", "Ġ", "ĠWE", "'", "VE", "ĊĊ", "Ġx"]),
            ("llama-bpe", ["It", "'s", "Ġ", "202", "6", ",", "Ġ", "ĠWE", "'VE", "ĊĊ", "Ġx"]),
            ("qwen2", ["It", "'s", "Ġ", "2", "0", "2", "6", ",", "Ġ", "ĠWE", "'VE", "ĊĊ", "Ġx"]),
            ("tekken", ["It", "'s", "Ġ", "2", "0", "2", "6", ",", "Ġ", "ĠWE", "'VE", "ĊĊ", "Ġx"]),
            ("command-r", ["It", "'s", "Ġ", "2", "0", "2", "6", ",", "Ġ", "ĠWE", "'", "VE", "ĊĊ", "Ġx"]),
            ("seed-coder", ["It", "'s", "Ġ", "2", "0", "2", "6", ",", "Ġ", "ĠWE", "'VE", "ĊĊ", "Ġx"]),
            ("gpt-4o", ["It's", "Ġ", "202", "6", ",", "Ġ", "ĠWE'VE", "ĊĊ", "Ġx"]),
        ],
    )
    def test_words_are_cut_where_the_model_s_own_tokenizer_cuts_them(self, pre: str, words: list[str]) -> None:
        pieces = build(byte_level(pre=pre)).pre_tokenizer.pre_tokenize_str("It's 2026,  WE'VE\n\n x")
        assert [piece for piece, _ in pieces] == words

    @pytest.mark.parametrize(
        ("alias", "name", "add_bos"),
        [
            ("phi-2", "gpt-2", False),
            ("gigachat", "gpt-2", False),
            ("olmo", "gpt-2", False),
            ("exaone", "smollm", False),
            ("falcon3", "llama-bpe", True),
            ("pixtral", "llama-bpe", True),
            ("lfm2", "llama-bpe", True),
            ("glm4", "smaug-bpe", False),
            ("deepseek-r1-qwen", "qwen2", False),
            ("megrez", "qwen2", False),
            ("llama4", "gpt-4o", False),
        ],
    )
    def test_one_cut_may_have_several_names(self, alias: str, name: str, add_bos: bool) -> None:
        ours, known = build(byte_level(pre=alias)), build(byte_level(pre=name))
        for text in TEXTS:
            assert ours.pre_tokenizer.pre_tokenize_str(text) == known.pre_tokenizer.pre_tokenize_str(text)
        assert tokenizer_from_gguf(byte_level(pre=alias), "model.gguf").add_bos is add_bos

    def test_qwen_s_words_are_those_of_transformers(self) -> None:
        theirs = transformers.Qwen2Tokenizer(vocab={"a": 0}, merges=[]).backend_tokenizer
        ours = build(byte_level(pre="qwen2"))
        for text in TEXTS:
            normal = theirs.normalizer.normalize_str(text)
            assert ours.normalizer.normalize_str(text) == normal
            assert ours.pre_tokenizer.pre_tokenize_str(normal) == theirs.pre_tokenizer.pre_tokenize_str(normal)

    def test_llama_3_takes_whole_words_from_the_vocabulary(self) -> None:
        """Whatever the merges say: here they make nothing of "zq"."""
        tokens = [*byte_level()["tokenizer.ggml.tokens"], "zq"]
        types = [*byte_level()["tokenizer.ggml.token_type"], 1]
        assert build(byte_level(pre="llama-bpe", tokens=tokens, token_type=types)).encode("zq").tokens == ["zq"]
        assert build(byte_level(pre="gpt-2", tokens=tokens, token_type=types)).encode("zq").tokens == ["z", "q"]

    def test_user_defined_tokens_are_whole_but_not_special(self) -> None:
        types = [3, 4, *byte_level()["tokenizer.ggml.token_type"][2:]]
        tokenizer = build(byte_level(token_type=types))
        ids = tokenizer.encode("a<|im_start|><|im_end|>").ids
        assert ids[1:] == [1, 2]
        assert tokenizer.decode(ids) == "a<|im_start|>"

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, False),
            ({"add_bos_token": True}, True),
            ({"add_bos_token": True, "bos_token_id": None}, False),
            ({"pre": "llama-bpe"}, True),
            ({"pre": "llama-bpe", "add_bos_token": False}, False),
        ],
    )
    def test_bos_is_added_where_llama_cpp_adds_it(self, changes: dict[str, Any], expected: bool) -> None:
        assert tokenizer_from_gguf(byte_level(**changes), "model.gguf").add_bos is expected

    def test_every_declared_end_ends_a_text(self) -> None:
        files = tokenizer_from_gguf(byte_level(eot_token_id=0, eom_token_id=2), "model.gguf")
        assert files.eos_ids == (2, 0)
        assert files.special_tokens["eos_token"] == "<|im_end|>"

    def test_templates_may_name_every_special_token(self) -> None:
        changes = {"unknown_token_id": 0, "padding_token_id": 0, "seperator_token_id": 2, "cls_token_id": 1, "mask_token_id": 2}
        names = {"unk_token": 0, "pad_token": 0, "sep_token": 2, "cls_token": 1, "mask_token": 2, "bos_token": 1, "eos_token": 2}
        metadata = byte_level(**changes)
        expected = {name: metadata["tokenizer.ggml.tokens"][id] for name, id in names.items()}
        assert tokenizer_from_gguf(metadata, "model.gguf").special_tokens == expected

    @pytest.mark.parametrize(
        ("text", "type", "ends"),
        [
            ("<|eot_id|>", 3, True),
            ("<|end|>", 4, True),
            ("<|end_of_text|>", 1, True),  # some converters call every token a normal one
            ("<end_of_turn>", 3, True),
            ("<｜end▁of▁sentence｜>", 3, True),
            ("[EOT]", 3, True),
            ("<eos>", 1, False),  # a word of the vocabulary like others
            ("<|start|>", 3, False),
            ("</s>", 4, False),  # Gemma's vocabularies have the tags of HTML
        ],
    )
    def test_tokens_that_are_known_to_end_a_turn_end_it(self, text: str, type: int, ends: bool) -> None:
        """Declared is the end of a document alone."""
        metadata = byte_level(eos_token_id=0)
        new = len(metadata["tokenizer.ggml.tokens"])
        metadata["tokenizer.ggml.tokens"].append(text)
        metadata["tokenizer.ggml.token_type"].append(type)
        files = tokenizer_from_gguf(metadata, "model.gguf")
        assert files.eos_ids == ((0, 2, new) if ends else (0, 2))
        if ends:
            assert Tokenizer.from_str(files.tokenizer_json).encode(f"a{text}").ids[-1] == new

    def test_a_message_s_end_is_no_end_where_a_turn_has_several(self) -> None:
        metadata = byte_level(eos_token_id=0)
        metadata["tokenizer.ggml.tokens"] += ["<|end|>", "<|return|>"]
        metadata["tokenizer.ggml.token_type"] += [3, 3]
        assert tokenizer_from_gguf(metadata, "model.gguf").eos_ids == (0, 2, len(metadata["tokenizer.ggml.tokens"]) - 1)


_BUILT: dict[str, Tokenizer] = {}


class TestSentencePiece:
    def reference(self) -> Tokenizer:
        """As `transformers` converts such a model: merges by score, spaces as U+2581, bytes for what is unknown."""
        metadata = sentencepiece()
        tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        merges = generate_merges(vocabulary, dict(zip(tokens, scores, strict=True)), skip_tokens=[*tokens[:259], "</tool>"])
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        return tokenizer

    def test_merges_as_transformers_converts_them(self) -> None:
        ours, theirs = build(sentencepiece()), self.reference()
        for text in ("hello world", "the land and the hell", "héllo 12 21", "    the", "日本 the", "worldhello"):
            assert ours.encode(text).ids == theirs.encode(text).ids
            assert ours.decode(ours.encode(text).ids) == text

    def test_pieces(self) -> None:
        tokenizer = build(sentencepiece())
        assert tokenizer.encode("hello world").tokens == ["▁hello", "▁world"]
        assert tokenizer.encode("日").tokens == ["▁", "<0xE6>", "<0x97>", "<0xA5>"]
        assert tokenizer.encode("the</tool>").tokens[-1] == "</tool>"
        assert tokenizer.encode("</s>").ids == [2]

    def test_without_a_space_in_front(self) -> None:
        tokenizer = build(sentencepiece(add_space_prefix=False))
        assert tokenizer.encode("hello").tokens == ["hello"]
        assert tokenizer.decode(tokenizer.encode(" hello world").ids) == " hello world"

    def test_bos_is_added_unless_the_file_says_otherwise(self) -> None:
        assert tokenizer_from_gguf(sentencepiece(), "model.gguf").add_bos
        assert not tokenizer_from_gguf(sentencepiece(add_bos_token=False), "model.gguf").add_bos


class TestGemma4:
    """Of characters, as SentencePiece models are, with merges in an order of their own."""

    def metadata(self) -> dict[str, Any]:
        given = sentencepiece()
        tokens, scores = given["tokenizer.ggml.tokens"], given["tokenizer.ggml.scores"]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        merges = generate_merges(vocabulary, dict(zip(tokens, scores, strict=True)), skip_tokens=[*tokens[:259], "</tool>"])[::-1]
        return sentencepiece(model="gemma4", pre=None, scores=None, merges=[" ".join(merge) for merge in merges])

    def test_is_the_tokenizer_of_transformers(self) -> None:
        metadata = self.metadata()
        merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
        vocabulary = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
        theirs = transformers.GemmaTokenizer(vocab=vocabulary, merges=merges, unk_token="<unk>").backend_tokenizer
        ours = build(metadata)
        for text in ("hello world", "the land and the hell", "héllo 12 21", "    the", "日本 the\n\nworld", "worldhello"):
            assert ours.encode(text).ids == theirs.encode(text, add_special_tokens=False).ids
            assert ours.decode(ours.encode(text).ids) == text
        by_score = build(sentencepiece(add_space_prefix=False))
        assert ours.encode("hellor").ids != by_score.encode("hellor").ids

    def test_a_call_of_a_tool_ends_a_turn(self) -> None:
        metadata = self.metadata()
        metadata["tokenizer.ggml.tokens"] += ["<|tool_response>", "<turn|>"]
        metadata["tokenizer.ggml.token_type"] += [4, 3]
        files = tokenizer_from_gguf(metadata, "model.gguf")
        assert files.eos_ids[-2:] == (len(metadata["tokenizer.ggml.tokens"]) - 2, len(metadata["tokenizer.ggml.tokens"]) - 1)


@pytest.mark.parametrize(
    ("metadata", "error", "named"),
    [
        (byte_level(pre="unheard-of"), UnsupportedModelError, "'unheard-of'"),
        (byte_level(pre=None), UnsupportedModelError, "'default'"),
        (byte_level(model="t5"), UnsupportedModelError, "'t5'"),
        (byte_level(model=None), CheckpointError, "model"),
        (byte_level(add_eos_token=True), UnsupportedModelError, "add_eos_token"),
        (byte_level(tokens=None), CheckpointError, "tokens"),
        (byte_level(tokens=[1, 2]), CheckpointError, "list of strings"),
        (byte_level(token_type=[1]), CheckpointError, "1 token types"),
        (byte_level(tokens=["a"] * 323), CheckpointError, "322 tokens of the vocabulary occur twice"),
        (byte_level(merges=["no such"]), CheckpointError, "do not fit"),
        (byte_level(merges=["alone"]), CheckpointError, "do not fit"),
        (byte_level(merges=None), CheckpointError, "merges"),
        (byte_level(eos_token_id=323), CheckpointError, "eos_token_id is 323, and there are 323 tokens"),
        (sentencepiece(scores=[0.0]), CheckpointError, "1 scores"),
        (sentencepiece(scores=None), CheckpointError, "scores"),
        (sentencepiece(remove_extra_whitespaces=True), UnsupportedModelError, "normalizes"),
        (sentencepiece(precompiled_charsmap=[1, 2]), UnsupportedModelError, "normalizes"),
    ],
)
def test_tokenizers_that_cannot_be_are_named(metadata: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        tokenizer_from_gguf(metadata, "model.gguf")


@pytest.fixture(scope="module")
def directory(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of SmolLM2's tokenizer."""
    directory = tmp_path_factory.mktemp("smollm2")
    open_checkpoint(str(smollm2_gguf)).write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


class TestSmolLM2:
    def test_tokenizes_as_transformers_does(self, tokenizer: Tokenizer, smollm2_gguf: Path) -> None:
        theirs = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
        # Its reading of GGUF files leaves out that digits stand alone; the published tokenizer does not.
        backend = theirs.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer])
        for text in TEXTS:
            assert tokenizer.encode(text).ids == theirs.encode(text), text
            assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text

    @pytest.mark.parametrize(
        ("text", "ids"),
        [
            ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
            ("The capital of France is", [504, 3575, 282, 4649, 314]),
            ("Café déjà vu.", [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
            ("  multiple   spaces", [216, 2701, 256, 5600]),
        ],
    )
    def test_tokenizes_as_the_published_tokenizer_does(self, text: str, ids: list[int], tokenizer: Tokenizer) -> None:
        assert tokenizer.encode(text).ids == ids

    def test_is_built_like_the_published_tokenizer(self, tokenizer: Tokenizer) -> None:
        built = json.loads(tokenizer.to_str())
        digits, byte_level = built["pre_tokenizer"]["pretokenizers"]
        assert digits == {"type": "Digits", "individual_digits": True}
        assert (byte_level["type"], byte_level["add_prefix_space"], byte_level["use_regex"]) == ("ByteLevel", False, True)
        assert built["decoder"]["type"] == "ByteLevel"
        assert built["post_processor"] is None
        assert len(built["added_tokens"]) == 17
        assert all(token["special"] and not token["normalized"] for token in built["added_tokens"])

    def test_text_and_template(self, directory: Path) -> None:
        text = json.loads((directory / "text.json").read_text())
        named = {"<|im_start|>": ["bos_token"], "<|im_end|>": ["eos_token", "pad_token"], "<|endoftext|>": ["unk_token"]}
        assert text == {
            "special_tokens": {name: token for token, names in named.items() for name in names},
            "bos_token_id": 1,
            "eos_token_ids": [2, 0],
            "add_bos": False,
        }
        assert (directory / "chat_template.jinja").read_text().startswith("{% for message in messages %}")


def test_llama_3_s_words_are_those_of_its_published_pattern() -> None:
    """The pattern of Meta's own tokenizer, compiled by the library from scratch."""
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    theirs, ours = pre_tokenizers.Sequence(steps), build(byte_level(pre="llama3"))
    assert isinstance(ours.decoder, decoders.ByteLevel)
    for text in TEXTS:
        assert ours.pre_tokenizer.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)

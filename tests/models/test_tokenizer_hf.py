"""Tokenizers of Hugging Face directories, against `transformers`' own loading of the same files."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from random_checkpoints import BOS, CHAT_TEMPLATE, EOS, VOCAB_SIZE, save_tokenizer, train_tokenizer, write_random_checkpoint

from engine.errors import CheckpointError, UnsupportedModelError
from engine.models.open import open_checkpoint
from engine.server.text.text import Text

TEXTS = ["Once upon a time", "  x = 1\n\ty = 2\r\n", "Straße 東京 🙂 2026", f"{BOS}user\nhello{EOS}\n", "", "\u00a0\u200b\ufeff"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_random_checkpoint("llama", tmp_path / "model", num_hidden_layers=1)


def update(path: Path, **values: Any) -> None:
    current = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({name: value for name, value in (current | values).items() if value is not None}))


def written(directory: Path, into: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any], str | None]:
    into.mkdir()
    open_checkpoint(str(directory)).write_tokenizer(into)
    template = into / "chat_template.jinja"
    text = json.loads((into / "text.json").read_text())
    return tokenizers.Tokenizer.from_file(str(into / "tokenizer.json")), text, template.read_text() if template.exists() else None


def test_tokenizes_as_transformers_does(directory: Path, tmp_path: Path) -> None:
    tokenizer, text, template = written(directory, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    for sample in TEXTS:
        assert tokenizer.encode(sample).ids == theirs.encode(sample)
        assert tokenizer.decode(tokenizer.encode(sample).ids, skip_special_tokens=False) == sample
    assert text == {"special_tokens": {"bos_token": BOS, "eos_token": EOS}, "bos_token_id": 1, "eos_token_ids": [2], "add_bos": False}
    assert template == CHAT_TEMPLATE


def test_a_post_processor_that_adds_bos_is_kept_and_not_doubled(directory: Path, tmp_path: Path) -> None:
    path = directory / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    tokenizer.save(str(path))
    ours, text, _ = written(directory, tmp_path / "out")
    assert ours.encode("Once").ids == transformers.AutoTokenizer.from_pretrained(directory).encode("Once")
    assert ours.encode("Once").ids[0] == 1
    assert text["add_bos"] is False


def test_truncation_and_padding_are_not_the_tokenizer_s_business(directory: Path, tmp_path: Path) -> None:
    path = directory / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(path))
    ours, _, _ = written(directory, tmp_path / "out")
    assert len(ours.encode("a b c d e f g h i j k l m n o p").ids) > 8
    assert len(ours.encode("a").ids) == 1


@pytest.mark.parametrize(
    ("generation", "config", "token", "expected"),
    [
        ({"eos_token_id": [0, 2]}, {"eos_token_id": 2}, EOS, [0, 2]),
        ({"eos_token_id": 0}, {"eos_token_id": 5}, EOS, [0, 2]),
        ({}, {"eos_token_id": [7, 0]}, EOS, [7, 0, 2]),
        ({}, {"eos_token_id": None}, EOS, [2]),
        ({}, {"eos_token_id": None}, None, []),
        ({}, {"eos_token_id": 3}, "<|a new token|>", [3, VOCAB_SIZE]),
    ],
)
def test_a_text_ends_at_every_token_that_is_declared_its_end(
    generation: dict[str, Any], config: dict[str, Any], token: str | None, expected: list[int], directory: Path, tmp_path: Path
) -> None:
    (directory / "generation_config.json").write_text(json.dumps(generation))
    update(directory / "config.json", **config)
    update(directory / "tokenizer_config.json", eos_token=token)
    _, text, _ = written(directory, tmp_path / "out")
    assert text["eos_token_ids"] == expected
    assert list(open_checkpoint(str(directory)).generation.eos_ids) == expected


def test_special_tokens_may_be_objects(directory: Path, tmp_path: Path) -> None:
    update(directory / "tokenizer_config.json", bos_token={"__type": "AddedToken", "content": BOS, "lstrip": False}, eos_token=None)
    update(directory / "special_tokens_map.json", eos_token={"content": EOS})
    _, text, _ = written(directory, tmp_path / "out")
    assert (text["special_tokens"], text["bos_token_id"]) == ({"bos_token": BOS, "eos_token": EOS}, 1)


def test_templates_may_name_every_special_token(directory: Path, tmp_path: Path) -> None:
    update(directory / "tokenizer_config.json", pad_token="<|endoftext|>", cls_token="<|cls|>", image_token="<|image|>")
    update(directory / "special_tokens_map.json", unk_token={"content": "<|unk|>"})
    (directory / "chat_template.jinja").write_text("{{ bos_token, eos_token, pad_token, unk_token, cls_token, image_token, sep_token }}")
    written(directory, tmp_path / "out")
    messages = [{"role": "user", "content": "hello"}]
    theirs = transformers.AutoTokenizer.from_pretrained(directory).apply_chat_template(messages, tokenize=False)
    assert Text.load(tmp_path / "out").render_chat(messages, add_generation_prompt=False) == theirs
    assert theirs.count("<|") == 6


class TestChatTemplate:
    @pytest.fixture
    def bare(self, directory: Path) -> Path:
        (directory / "chat_template.jinja").unlink()
        return directory

    def test_none(self, bare: Path, tmp_path: Path) -> None:
        assert written(bare, tmp_path / "out")[2] is None

    def test_in_the_tokenizer_s_configuration(self, bare: Path, tmp_path: Path) -> None:
        update(bare / "tokenizer_config.json", chat_template="{{ messages }}\n")
        assert written(bare, tmp_path / "out")[2] == "{{ messages }}\n"

    def test_in_a_json_file_of_its_own(self, bare: Path, tmp_path: Path) -> None:
        update(bare / "chat_template.json", chat_template="{{ messages }}")
        assert written(bare, tmp_path / "out")[2] == "{{ messages }}"

    def test_the_file_wins(self, directory: Path, tmp_path: Path) -> None:
        update(directory / "tokenizer_config.json", chat_template="other")
        assert written(directory, tmp_path / "out")[2] == CHAT_TEMPLATE

    def test_a_damaged_file_is_named(self, directory: Path) -> None:
        (directory / "chat_template.jinja").write_bytes(b"{{ \xff }}")
        with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
            open_checkpoint(str(directory))

    def test_of_several_the_default(self, bare: Path, tmp_path: Path) -> None:
        named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
        update(bare / "tokenizer_config.json", chat_template=named)
        assert written(bare, tmp_path / "out")[2] == "D"

    def test_several_without_a_default(self, bare: Path) -> None:
        named = [{"name": "rag", "template": "R"}, {"name": "tools", "template": "T"}]
        update(bare / "tokenizer_config.json", chat_template=named)
        with pytest.raises(UnsupportedModelError, match="rag, tools"):
            open_checkpoint(str(bare))

    @pytest.mark.parametrize("template", [3, [{"name": "default"}], ["default"]])
    def test_one_that_cannot_be(self, template: object, bare: Path) -> None:
        update(bare / "tokenizer_config.json", chat_template=template)
        with pytest.raises(CheckpointError, match="chat_template"):
            open_checkpoint(str(bare))


TOOL = {"content": "<|tool|>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
STRIPPED = {"__type": "AddedToken", "content": EOS, "lstrip": True, "rstrip": True, "normalized": True, "special": True}


class TestDeclaredTokens:
    @pytest.mark.parametrize(
        ("config", "special_tokens_map", "added_tokens"),
        [
            pytest.param({"added_tokens_decoder": {str(VOCAB_SIZE): TOOL}}, {}, {}, id="by id"),
            pytest.param({"added_tokens_decoder": {str(VOCAB_SIZE): {**TOOL, "special": False}}}, {}, {}, id="by id, for users to see"),
            pytest.param({"added_tokens_decoder": {"1": {**TOOL, "content": BOS, "lstrip": True}}}, {}, {}, id="other flags"),
            pytest.param({"added_tokens_decoder": {"0": {**TOOL, "content": "<|endoftext|>", "special": False}}}, {}, {}, id="not special"),
            pytest.param({"added_tokens_decoder": {"1": {**TOOL, "content": BOS, "normalized": True}}}, {}, {}, id="normalized"),
            pytest.param({"added_tokens_decoder": {"300": {**TOOL, "content": None, "rstrip": True}}}, {}, {}, id="in the vocabulary"),
            pytest.param({"added_tokens_decoder": {}}, {"eos_token": "<|end|>"}, {"<|tool|>": VOCAB_SIZE}, id="older files do not count"),
            pytest.param({"additional_special_tokens": ["<|tool|>", "<|think|>"]}, {}, {}, id="additional"),
            pytest.param(
                {"additional_special_tokens": [{**TOOL, "__type": "AddedToken", "lstrip": True}]}, {}, {}, id="additional objects"
            ),
            pytest.param({"extra_special_tokens": ["<|tool|>", BOS]}, {}, {}, id="extra"),
            pytest.param({"extra_special_tokens": {"image_token": "<|image|>"}}, {}, {}, id="extra with names"),
            pytest.param({"image_token": "<|image|>"}, {}, {}, id="a name of its own"),
            pytest.param({"additional_special_tokens": ["<|a|>"], "extra_special_tokens": ["<|b|>"]}, {}, {}, id="extra before additional"),
            pytest.param({"eos_token": "<|end|>"}, {}, {}, id="end"),
            pytest.param({"eos_token": "the"}, {}, {}, id="end in the vocabulary"),
            pytest.param({"eos_token": {**STRIPPED, "content": "<|end|>"}}, {}, {}, id="end with flags"),
            pytest.param({"eos_token": STRIPPED}, {}, {}, id="flags of what is there"),
            pytest.param({"cls_token": "<|c|>", "pad_token": "<|p|>", "unk_token": "<|u|>", "mask_token": "<|m|>"}, {}, {}, id="in order"),
            pytest.param({}, {"eos_token": "<|end|>"}, {}, id="map"),
            pytest.param({}, {"pad_token": {"content": "<|pad|>", "lstrip": True, "normalized": True}}, {}, id="map of objects"),
            pytest.param({}, {"additional_special_tokens": ["<|tool|>"]}, {}, id="map's additional"),
            pytest.param({"extra_special_tokens": ["<|a|>"]}, {"extra_special_tokens": ["<|b|>"]}, {}, id="map's extra"),
            pytest.param({}, {}, {"<|tool|>": VOCAB_SIZE, "<|think|>": VOCAB_SIZE + 1}, id="added"),
            pytest.param({"extra_special_tokens": ["<|tool|>"]}, {}, {"<|tool|>": VOCAB_SIZE}, id="added and special"),
            pytest.param({"pad_token": "<|tool|>"}, {}, {"<|tool|>": VOCAB_SIZE}, id="added and named"),
        ],
    )
    def test_are_those_of_transformers(
        self, config: dict[str, Any], special_tokens_map: dict[str, Any], added_tokens: dict[str, int], directory: Path, tmp_path: Path
    ) -> None:
        for entry in config.get("added_tokens_decoder", {}).values():
            entry["content"] = entry["content"] or tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")).id_to_token(300)
        update(directory / "tokenizer_config.json", **config)
        for name, values in (("special_tokens_map.json", special_tokens_map), ("added_tokens.json", added_tokens)):
            if values:
                (directory / name).write_text(json.dumps(values))
        ours, text, _ = written(directory, tmp_path / "out")
        theirs = transformers.AutoTokenizer.from_pretrained(directory)
        assert {id: repr(token) for id, token in ours.get_added_tokens_decoder().items()} == {
            id: repr(token) for id, token in theirs.added_tokens_decoder.items()
        }
        for sample in (
            *TEXTS,
            "a <|tool|> b<|think|>c <|end|> the\n",
            f" x {EOS} y {BOS} z",
            "<|image|><|a|><|b|><|pad|><|c|><|p|><|u|><|m|>",
        ):
            ids = theirs.encode(sample)
            assert ours.encode(sample).ids == ids
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert text["special_tokens"] == theirs.special_tokens_map
        assert text["eos_token_ids"] == list(dict.fromkeys([2, theirs.eos_token_id]))

    def test_one_file_says_which_tokens_of_another_are_special(self, directory: Path, tmp_path: Path) -> None:
        """As in `transformers` until version 4; 5 overlooks it."""
        update(directory / "special_tokens_map.json", additional_special_tokens=["<|tool|>"])
        update(directory / "added_tokens.json", **{"<|tool|>": VOCAB_SIZE, "<|think|>": VOCAB_SIZE + 1})
        tokenizer, _, _ = written(directory, tmp_path / "out")
        assert tokenizer.decode(tokenizer.encode("a<|tool|><|think|>").ids) == "a<|think|>"

    @pytest.mark.parametrize("added", [{"7": {"content": BOS}}, {"x": {"content": "a"}}, {"7": {}}, {"7": "a"}, ["a"]])
    def test_declarations_that_cannot_be(self, added: object, directory: Path) -> None:
        update(directory / "tokenizer_config.json", added_tokens_decoder=added)
        with pytest.raises(CheckpointError, match="tokenizer_config"):
            open_checkpoint(str(directory))

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("tokenizer_config.json", {"extra_special_tokens": "<|tool|>"}),
            ("tokenizer_config.json", {"additional_special_tokens": [3]}),
            ("special_tokens_map.json", {"pad_token": {"text": "<|pad|>"}}),
            ("added_tokens.json", {"<|tool|>": "7"}),
            ("added_tokens.json", {"<|tool|>": VOCAB_SIZE + 7}),
        ],
    )
    def test_whatever_the_file(self, name: str, values: dict[str, Any], directory: Path) -> None:
        update(directory / name, **values)
        with pytest.raises(CheckpointError, match=name):
            open_checkpoint(str(directory))


class TestOlderLayouts:
    def test_vocabulary_and_merges_are_converted(self, directory: Path, tmp_path: Path) -> None:
        tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        tokenizer.model.save(str(directory))
        (directory / "tokenizer.json").unlink()
        update(directory / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
        converted, text, _ = written(directory, tmp_path / "out")
        for sample in TEXTS:
            assert converted.encode(sample).ids == tokenizer.encode(sample).ids
        assert text["eos_token_ids"] == [2]

    def test_what_cannot_be_converted_says_so(self, directory: Path) -> None:
        (directory / "tokenizer.json").unlink()
        (directory / "tokenizer.model").write_bytes(b"not a sentencepiece model")
        with pytest.raises(CheckpointError, match="could not be converted"):
            open_checkpoint(str(directory))

    def test_no_tokenizer_at_all(self, directory: Path) -> None:
        (directory / "tokenizer.json").unlink()
        with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
            open_checkpoint(str(directory))


def test_a_tokenizer_of_another_model_is_noticed(tmp_path: Path) -> None:
    """It has more tokens than the model has rows; one that was added to pad with does no harm."""
    directory = write_random_checkpoint("llama", tmp_path / "model", num_hidden_layers=1, vocab_size=310)
    save_tokenizer(train_tokenizer(310), directory)
    update(directory / "tokenizer_config.json", pad_token="[PAD]")
    open_checkpoint(str(directory))
    save_tokenizer(train_tokenizer(311), directory)
    with pytest.raises(CheckpointError, match="the tokenizer has 311 tokens, the model a vocabulary of 310"):
        open_checkpoint(str(directory))


@pytest.mark.parametrize("content", ["", "{}", '{"model": {"type": "Unheard"}}'])
def test_a_damaged_tokenizer_is_named(content: str, directory: Path) -> None:
    (directory / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer"):
        open_checkpoint(str(directory))


@pytest.mark.parametrize("value", ["2", [1, "2"], 1.5, True])
def test_an_end_that_cannot_be_is_named(value: object, directory: Path) -> None:
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(CheckpointError, match="eos_token_id"):
        open_checkpoint(str(directory))

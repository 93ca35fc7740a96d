"""Prompts for load tests: exact in length, without a common beginning, the same every time."""

from pathlib import Path

import pytest
from artifact_stand_in import byte_level_tokenizer, sentencepiece_tokenizer, write_artifact
from tokenizers import Tokenizer

from engine.bench.workload import Request, open_tokenizer, random_requests, read_requests
from engine.errors import UsageError


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), sentencepiece_tokenizer()], ids=["byte level", "sentencepiece"])
@pytest.mark.parametrize("lengths", [(1, 1), (7, 7), (20, 300)])
def test_prompts_have_exactly_the_length_that_is_wanted(tokenizer: Tokenizer, lengths: tuple[int, int]) -> None:
    count = 2
    requests = random_requests(tokenizer, count, lengths, (3, 9), seed=1)
    assert len(requests) == count
    for request in requests:
        assert len(tokenizer.encode(request.prompt).ids) == request.prompt_tokens
        assert lengths[0] <= request.prompt_tokens <= lengths[1]
        assert 3 <= request.max_tokens <= 9


@pytest.mark.parametrize(("tokenizer", "count"), [(byte_level_tokenizer(), 12), (sentencepiece_tokenizer(), 2)])
def test_no_two_prompts_begin_with_the_same_token(tokenizer: Tokenizer, count: int) -> None:
    requests = random_requests(tokenizer, count, (5, 40), (1, 1), seed=0)
    assert len({tokenizer.encode(request.prompt).ids[0] for request in requests}) == count


def test_the_same_seed_asks_the_same() -> None:
    tokenizer = byte_level_tokenizer()

    def ask(seed: int, part: int = 0) -> list[Request]:
        return random_requests(tokenizer, 8, (5, 40), (1, 50), seed, part)

    assert ask(3) == ask(3)
    assert ask(3) != ask(4)


def test_another_part_has_other_words_in_the_same_lengths() -> None:
    tokenizer = byte_level_tokenizer()
    first, second = (random_requests(tokenizer, 8, (5, 40), (1, 50), 0, part) for part in (0, 1))
    assert [(request.prompt_tokens, request.max_tokens) for request in first] == [
        (request.prompt_tokens, request.max_tokens) for request in second
    ]
    assert {request.prompt for request in first}.isdisjoint(request.prompt for request in second)


def test_more_prompts_than_words() -> None:
    with pytest.raises(UsageError, match="1000 prompts cannot all begin differently") as caught:
        random_requests(byte_level_tokenizer(), 1000, (5, 40), (1, 1), seed=0)
    assert caught.value.hint is not None


def test_special_tokens_of_the_tokenizer_count() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_level_tokenizer()
    bos = "<|im_start|>"
    tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
    (request,) = random_requests(tokenizer, 1, (9, 9), (1, 1), seed=0)
    assert len(tokenizer.encode(request.prompt).ids) == 9
    assert len(tokenizer.encode(request.prompt, add_special_tokens=False).ids) == 8


def test_a_tokenizer_is_found_in_an_artifact_and_in_a_directory_and_as_a_file(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact")
    directory = artifact / "tokenizer"
    vocabularies = [open_tokenizer(path).get_vocab() for path in (artifact, directory, directory / "tokenizer.json")]
    assert vocabularies == [byte_level_tokenizer().get_vocab()] * 3


def test_a_tokenizer_that_truncates_does_not_here(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(open_tokenizer(tmp_path).encode("a b c d e f g a b c").ids) > 4


@pytest.mark.parametrize("content", [None, "{}", "no json"])
def test_what_is_not_a_tokenizer(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UsageError, match=r"holds no tokenizer\.json" if content is None else "is not a tokenizer"):
        open_tokenizer(tmp_path)


def test_prompts_from_a_file(tmp_path: Path) -> None:
    tokenizer, file = byte_level_tokenizer(), tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "The quick brown fox"}\n\n{"prompt": "a b", "max_tokens": 7}\n')
    first, second = read_requests(file, tokenizer, 16)
    assert (first.prompt, first.max_tokens) == ("The quick brown fox", 16)
    assert first.prompt_tokens == len(tokenizer.encode("The quick brown fox").ids)
    assert (second.prompt, second.max_tokens) == ("a b", 7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n", "holds no prompts"),
        ('{"prompt": "x"}\n{"prompt": 1}\n', "line 2"),
        ('{"prompt": "x", "temperature": 1}\n', "temperature"),
        ("x\n", "line 1"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_holds_no_prompts(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_requests(file, byte_level_tokenizer(), 16)

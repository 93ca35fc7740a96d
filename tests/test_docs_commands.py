"""Every command of ours that the documents and the CI recipe show is one that our command line takes."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT

from engine.cli import COMMANDS, parse

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WORKFLOW = ROOT / "docs" / "ci" / "build-artifact.yml"
_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`(engine [^`\n]+)`(?!`)")
_ENDS = {"|", "||", "&&", ";", ">", ">>", "<", "&"}


def commands_in(script: str) -> Iterator[list[str]]:
    """The arguments of every `engine` in a shell script or a terminal's transcript."""
    for line in script.replace("\\\n", " ").splitlines():
        if re.match(r"(\$ )?(\w+=\S+ )*(\S*/)?engine ", line.strip()):
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            begin = next(index for index, word in enumerate(words) if Path(word).name == "engine")
            end = next((index for index, word in enumerate(words) if word in _ENDS), len(words))
            yield words[begin + 1 : end]


def shown(path: Path) -> Iterator[list[str]]:
    for block in _FENCED.findall(path.read_text()):
        yield from commands_in(block)


def options_of(command: str) -> set[str]:
    """All flags that a command or one of its own commands takes."""
    found: set[str] = set()

    def collect(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            found.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                for child in action.choices.values():
                    collect(child)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "print_help", collect)
        with pytest.raises(SystemExit):
            parse([command, "--help"])
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_blocks_are_whole(path: Path) -> None:
    for words in shown(path):
        assert parse(words)[0] == words[0]


def test_documents_show_commands() -> None:
    assert {words[0] for path in DOCUMENTS for words in shown(path)} >= {
        "build",
        "serve",
        "push",
        "pull",
        "pack",
        "plan",
        "verify",
        "bench",
    }


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_sentences_exist_with_their_flags(path: Path) -> None:
    for text in _INLINE.findall(_FENCED.sub("", path.read_text())):
        words = text.split()[1:]
        if words[0].startswith("-") or words[0] == "COMMAND":
            continue
        assert words[0] in COMMANDS, text
        flags = {word.partition("=")[0] for word in words if word.startswith("-") and word != "--"}
        assert flags <= options_of(words[0]), text


def test_the_ci_recipe() -> None:
    yaml: Any = pytest.importorskip("yaml")
    workflow = yaml.safe_load(WORKFLOW.read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step for step in steps if ("run" in step) == ("uses" in step)] == []
    lines = [words for step in steps if "run" in step for words in commands_in(step["run"])]
    assert [words[0] for words in lines] == [
        *("build", "build", "cache", "cache", "verify", "plan", "push", "cache"),
        *("cache", "build", "verify", "push"),
    ]
    for words in lines:
        assert parse(words)[0] == words[0]
    written = WORKFLOW.read_text()
    used, given = set(re.findall(r"\"\$(\w+)\"", written)), set(re.findall(r"^ +([A-Z_]+): ", written, re.MULTILINE))
    assert used <= given
    assert set(re.findall(r"secrets\.(\w+)", written)) == {"HF_TOKEN"}


def test_the_documents_that_others_name_are_there() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([\w./-]+)\)", path.read_text()):
            assert (path.parent / target).exists(), (path.name, target)

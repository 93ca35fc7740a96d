"""`engine inspect --routes`: which experts a text goes to."""

import functools
import json
import re
import sys
from pathlib import Path

import pytest
from artifact_stand_in import byte_level_tokenizer, write_artifact
from checkout import ROOT

from engine.artifacts import RoutesInfo
from engine.cli import main
from engine.commands import terminal
from engine.commands.heat_map import ExpertLoad
from engine.server.llm import LLM

WORKER = (sys.executable, "-P", str(ROOT / "tests" / "support" / "scripted_worker.py"))
TEXT = "a b c d e f g"


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(terminal, "LLM", functools.partial(LLM, worker_command=WORKER))
    monkeypatch.setenv("COLUMNS", "140")
    return str(write_artifact(tmp_path / "artifact", routes=RoutesInfo(layers=[0, 1], experts=8, chosen=2)))


def expected() -> list[list[int]]:
    """How often the scripted worker chooses each expert, by layer."""
    ids = byte_level_tokenizer().encode(TEXT).ids
    chosen = [[each for id in ids for each in (id % 8, (id + 1) % 8)], [each for id in ids for each in (id // 8 % 8, (id // 8 + 3) % 8)]]
    return [[layer.count(expert) for expert in range(8)] for layer in chosen]


def test_the_counts_as_json(artifact: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["inspect", artifact, "--routes", TEXT, "--json"]) == 0
    shown = json.loads(capfdbinary.readouterr().out)
    assert [layer["choices"] for layer in shown["layers"]] == expected()
    assert [layer["layer"] for layer in shown["layers"]] == [0, 1]
    tokens = len(byte_level_tokenizer().encode(TEXT).ids)
    assert (shown["tokens"], shown["mean"]) == (tokens, tokens * 2 / 8)


def test_a_heat_map_in_the_terminal_and_as_a_page(artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", artifact, "--routes", TEXT, "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if re.match(r" *[01] ", line)]
    most = max(map(max, expected()))
    for row, choices in zip(rows, expected(), strict=True):
        _, cells, never, *_ = row
        assert [cell == "·" for cell in cells] == [count == 0 for count in choices]
        assert [cell == "█" for cell in cells] == [8 * count > 7 * most for count in choices]
        assert int(never) == choices.count(0)
    html = page.read_text()
    assert rows[0][1] in re.sub("<[^>]+>", "", html)
    assert "src=" not in html, "it loads nothing"
    assert shown.splitlines()[-1] in html


def test_the_summary_says_how_uneven_it_is() -> None:
    load = ExpertLoad.of(RoutesInfo(layers=[3, 7], experts=4, chosen=1), [[[2], [0]], [[2], [1]], [[2], [3]], [[0], [3]]])
    assert load.summary() == (
        "4 tokens in 2 layers: 3 of 8 experts never chosen; most loaded is expert 2 of layer 3, 3 tokens, 3.0 times the mean of 1.0"
    )


def test_many_experts_are_folded(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    load = ExpertLoad.of(RoutesInfo(layers=[0], experts=160, chosen=2), [[[0, 159]]])
    Console(width=120).print(load.table())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [next(cell for cell in line if "·" in cell) for line in lines[1:4]] == ["█" + "·" * 63, "·" * 64, "·" * 31 + "█"]


def test_an_artifact_that_does_not_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(write_artifact(tmp_path / "artifact")), "--routes", TEXT]) == 2
    assert "engine build --capture-routes" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "words"), [(["--html", "page"], "--routes TEXT"), (["--routes", TEXT, "--weights"], "one of the two")])
def test_flags_that_make_no_sense_together(flags: list[str], words: str, artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", artifact, *flags]) == 2
    assert words in capsys.readouterr().err


def test_a_page_that_cannot_be_written(artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", artifact, "--routes", TEXT, "--html", str(tmp_path / "no" / "page")]) == 2
    assert "cannot be written" in capsys.readouterr().err

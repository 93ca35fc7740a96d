"""Stop strings: where the text is cut must not depend on how it was split."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.server.text.stop_checker import StopChecker


def run(pieces: list[str], stops: list[str], *, include: bool = False) -> tuple[list[str], bool]:
    checker = StopChecker(stops, include=include)
    shown = []
    for piece in pieces:
        text, stopped = checker.push(piece)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, checker.flush()], False


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "stopped"),
    [
        (["ab", "cd"], [], ["ab", "cd", ""], False),
        (["Hello wo", "rld", "!"], ["world"], ["Hello ", ""], True),
        (["Hello wo", "od", "!"], ["world"], ["Hello ", "wood", "!", ""], False),
        (["aaab"], ["ab"], ["aa"], True),
        (["a", "a", "a", "b", "c"], ["aab"], ["", "", "a", ""], True),
        (["one\n", "\ntwo"], ["\n\n", "two"], ["one", ""], True),
        (["abcd"], ["abcd", "bc"], ["a"], True),
        (["ab", "cd"], ["abcd", "bc"], ["", "a"], True),
        (["xabc"], ["abc", "bc", "c"], ["x"], True),
        (["ends wi"], ["with"], ["ends ", "wi"], False),
        (["東", "京"], ["京"], ["東", ""], True),
    ],
)
def test_cases(pieces: list[str], stops: list[str], shown: list[str], stopped: bool) -> None:
    assert run(pieces, stops) == (shown, stopped)


def test_the_stop_string_may_be_kept() -> None:
    assert run(["Hello wo", "rld!"], ["world"], include=True) == (["Hello ", "world"], True)


def test_text_that_no_reader_sees_completes_stop_strings() -> None:
    checker = StopChecker(["<|end|>", "a<|x|>b"])
    assert checker.push("one ") == ("one ", False)
    assert checker.push("<|other|>", seen=False) == ("", False)
    assert checker.push("a") == ("", False)
    assert checker.push("<|x|>", seen=False) == ("", False)
    assert checker.push("c") == ("ac", False)
    assert checker.push("a") == ("", False)
    assert checker.push("<|end|>", seen=False) == ("a", True)


def test_what_no_reader_sees_is_never_shown_by_itself() -> None:
    checker = StopChecker(["a<|x|>b"], include=True)
    assert checker.push("a") == ("", False)
    assert checker.push("<|x|>", seen=False) == ("", False)
    assert checker.flush() == "a"
    checker.push("a")
    checker.push("<|x|>", seen=False)
    assert checker.push("b") == ("a<|x|>b", True)


small_text = st.text("ab", max_size=12)


@given(st.lists(small_text, max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_any_split_gives_the_same_text(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    ends = [(match.end(), match.start()) for stop in stops if (match := re.search(re.escape(stop), text))]
    expected = text[: min(ends)[1]] if ends else text
    shown, stopped = run(pieces, stops)
    assert ("".join(shown), stopped) == (expected, bool(ends))


@given(st.lists(small_text, max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_only_what_may_become_a_stop_string_is_held_back(pieces: list[str], stops: list[str]) -> None:
    checker, pushed, shown = StopChecker(stops), "", ""
    for piece in pieces:
        text, stopped = checker.push(piece)
        pushed, shown = pushed + piece, shown + text
        if stopped:
            return
        held = pushed[len(shown) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)

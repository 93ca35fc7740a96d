"""Every error says a way out, where it is raised."""

import ast
from collections.abc import Iterator

from checkout import ROOT, our_files

from engine import errors

FAULTS_OF_OURS = {"BuildError"}
"""Whose way out is always the same: to report them."""


def kinds() -> set[str]:
    found = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.EngineError)}
    return found - FAULTS_OF_OURS


def raised(source: str) -> Iterator[ast.Call]:
    """Where errors of ours are made."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds():
            yield node


def has_hint(call: ast.Call) -> bool:
    """`hint=`, or all that the caller has, by `**`."""
    return any(keyword.arg in ("hint", None) for keyword in call.keywords)


def test_errors_are_raised_with_a_hint() -> None:
    sources = [name for name in our_files() if name.endswith(".py") and not name.startswith(("tests/", "benchmarks/"))]
    calls = [(name, call) for name in sources for call in raised((ROOT / name).read_text())]
    assert len(calls) > 300, "nothing was found: the test looks in the wrong place"
    assert [f"{name}:{call.lineno}" for name, call in calls if not has_hint(call)] == []


def test_the_test_sees_an_error_without_one() -> None:
    (with_hint, without) = raised("raise UsageError('a', hint='b')\nraise UsageError('a')")
    assert has_hint(with_hint)
    assert not has_hint(without)

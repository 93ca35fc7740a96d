"""Which files of the package a file needs, read off the import statements: ingredients of keys by construction."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from . import sources


def needed_by(*roots: str) -> frozenset[str]:
    """`roots` and every file that they import, directly or not, lazily or not; names relative to the package.

    What is imported for type checkers only does not count. A name that a folder's `__init__` takes
    from one of its modules leads to that module alone. What is imported by a name that is computed is
    not seen: whoever does that must name the roots (kernels/nvidia/emitters.py).
    """
    return _needed_by(sources.PACKAGE, roots)


@cache
def _needed_by(package: Path, roots: tuple[str, ...]) -> frozenset[str]:
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imported(package, name)
    return frozenset(found)


@cache
def _imported(package: Path, name: str) -> tuple[str, ...]:
    return tuple(file.relative_to(package).as_posix() for file in _imports(package / name))


def _imports(path: Path) -> Iterator[Path]:
    for node in _statements(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for alias in node.names:
                yield _file_of(module, alias.name)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every statement at any depth, but for those under `if TYPE_CHECKING`."""
    for name in ("body", "orelse", "handlers", "finalbody", "cases"):
        for child in getattr(node, name, ()):
            if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
                yield child
                yield from _statements(child)


def _file_of(module: Path, name: str) -> Path:
    if module.with_suffix(".py").is_file():
        return module.with_suffix(".py")
    if (module / f"{name}.py").is_file():
        return module / f"{name}.py"
    for node in ast.parse((module / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and name in [alias.name for alias in node.names]:
            return _file_of(module.joinpath(*(node.module or "").split(".")), name)
    return module / "__init__.py"

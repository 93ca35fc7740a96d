"""Nothing that traces, compiles or belongs to a build is imported while serving, nor torch, which brings much of that along."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = __name__.rpartition(".runtime.")[0]
FORBIDDEN = (
    "torch",
    "triton",
    "transformers",
    f"{_PACKAGE}.compiler",
    f"{_PACKAGE}.passes",
    f"{_PACKAGE}.models",
)


class _Guard(MetaPathFinder):
    """Refuses to find forbidden modules, and counts how often it was asked."""

    def __init__(self) -> None:
        self.refused = 0

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if is_forbidden(fullname):
            self.refused += 1
            raise ImportError(f"{fullname} belongs to a build and must not be imported while serving", name=fullname)
        return None


_guard = _Guard()


def is_forbidden(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in FORBIDDEN)


def install() -> None:
    """From now on importing a forbidden module raises ImportError.

    Raises ImportError if one has been imported already.
    """
    loaded = sorted(name for name in sys.modules if is_forbidden(name))
    if loaded:
        raise ImportError(f"{loaded[0]} belongs to a build, but was imported before serving began", name=loaded[0])
    if _guard not in sys.meta_path:
        sys.meta_path.insert(0, _guard)


def uninstall() -> None:
    """Undo `install`."""
    if _guard in sys.meta_path:
        sys.meta_path.remove(_guard)


def refused() -> int:
    """How many forbidden imports were attempted and refused in this process."""
    return _guard.refused

"""What stage 5 must know of a kind of target: how one segment is compiled, and what else a compiled segment needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..artifacts.store.keys import Identity


class Backend(Protocol):
    """How segments are lowered for one target. Pickled into compiler processes."""

    @property
    def suffix(self) -> str:
        """Of a compiled segment's file."""
        ...

    def segment(self, form_text: str) -> Identity:
        """Identity of a compiled segment: the graph, the target, the toolchain, and our own sources."""
        ...

    def compile(self, form_text: str, output: Path, sources: Path | None) -> None:
        """Compile a canonical form into `output`, and what goes with it beside it. sources: a directory that also gets generated code.

        Called in a process of its own.
        """
        ...

    def parts(self, compiled: Path) -> Sequence[str]:
        """Names of the files that a compiled segment cannot do without, all beside it when it was compiled."""
        ...

    def library(self) -> Identity | None:
        """Identity of the library that all segments share, if there is one."""
        ...

    def compile_library(self, output: Path) -> None:
        """Compile that library into `output`. Called in a process of its own."""
        ...

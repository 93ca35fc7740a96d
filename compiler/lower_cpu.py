"""Stage 5 for CPU: segments are shared objects, over one library of kernels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..artifacts.store.keys import Identity, identity
from ..artifacts.target import Target
from ..kernels import library
from . import segment_graph
from .sources import sources
from .toolchain import Versions

SEGMENT_SOURCES = (
    "artifacts/target.py",
    "compiler/compile_cpu.py",
    "compiler/segment_graph.py",
    "errors.py",
    "kernels/attention/options.py",
    "kernels/cut_operators.py",
    "kernels/fakes.py",
    "kernels/formats.py",
    "kernels/library.py",
    "kernels/linear/bands.py",
    "kernels/linear/blocks.py",
    "kernels/moe/options.py",
    "kernels/native.py",
    "kernels/nvidia/packed_rows.py",
    "kernels/ops.py",
    "kernels/row_operators.py",
    "kernels/schemas.py",
    "kernels/shims.py",
)
"""Every file of ours that compiling a segment reads; test_build_keys.py compares them with the imports."""
LIBRARY_SOURCES = ("errors.py", "kernels/library.py", "kernels/native.py")


@dataclass(frozen=True, kw_only=True)
class SegmentRecipe:
    """What a compiled segment is made from. form: its parts as canonical text."""

    form: Mapping[str, str]
    target: Target
    toolchain: Versions
    sources: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class LibraryRecipe:
    """What the kernel library is made from. flags: all that g++ gets but paths."""

    flags: tuple[str, ...]
    toolchain: Versions
    sources: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class CpuBackend:
    """Segments as shared objects, over one kernel library."""

    target: Target
    versions: Versions
    suffix: str = ".so"

    def segment(self, form_text: str) -> Identity:
        form = segment_graph.parts(form_text)
        return identity("segment", SegmentRecipe(form=form, target=self.target, toolchain=self.versions, sources=sources(*SEGMENT_SOURCES)))

    def compile(self, form_text: str, output: Path, sources: Path | None) -> None:
        from .compile_cpu import compile_form

        compile_form(form_text, str(self.target), output, sources)

    def parts(self, compiled: Path) -> Sequence[str]:
        return ()

    def library(self) -> Identity:
        files = (f"kernels/cpu/{path.name}" for path in library.source_files())
        flags = (*library.FLAGS, *self.target.compiler_flags)
        return identity("kernels", LibraryRecipe(flags=flags, toolchain=self.versions, sources=sources(*LIBRARY_SOURCES, *files)))

    def compile_library(self, output: Path) -> None:
        library.compile_library(self.target.compiler_flags, output)

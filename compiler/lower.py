"""Stage 5: every distinct segment, and the kernel library, to native code.

Each is looked up in the store by key first. What is missing is compiled in parallel processes
and added to the store, so that the next build of the same architecture compiles nothing.
"""

import inspect
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from ..artifacts import Target
from ..artifacts.store import Store, key_of
from ..errors import BuildError, EngineError
from ..kernels import library, ops
from . import lower_cpu, segment_graph
from .debug_dump import segment_sources
from .toolchain import Versions

SUFFIX = ".so"


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A compiled thing: its key, its file in the store, and whether it was there already."""

    key: str
    file: Path
    reused: bool


def segment_key(form_text: str, target: Target, versions: Versions) -> str:
    """Identity of a compiled segment: the graph, the target, the toolchain, and our own recipe."""
    recipe = inspect.getsource(lower_cpu) + inspect.getsource(segment_graph)
    return key_of("segment", form_text, str(target), *versions.ingredients(), recipe, *ops.SCHEMAS, *ops.C_SHIMS.values())


def kernel_library_key(target: Target, versions: Versions) -> str:
    """Identity of a kernel library: its sources, the target, the toolchain, and its compile command."""
    return key_of("kernels", library.sources_digest(), str(target), *versions.ingredients(), inspect.getsource(library))


class Lowering:
    """A pool of compiler processes over a store; use it as a context manager.

    work: where intermediate files go, inside the build's own directory, so that what a killed
    build leaves is removed with it. debug_dump: a directory that also gets the generated code.
    """

    def __init__(self, *, target: Target, versions: Versions, store: Store, jobs: int, work: Path, debug_dump: Path | None) -> None:
        self._target, self._versions, self._store = target, versions, store
        self._work, self._debug_dump = work.absolute(), debug_dump.absolute() if debug_dump else None  # compilers run elsewhere
        self._pool = ProcessPoolExecutor(max_workers=jobs, mp_context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> "Lowering":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, forms: Iterable[str], on_done: Callable[[Lowered], None]) -> tuple[Lowered, dict[str, Lowered]]:
        """The kernel library, and every form (canonical text), compiled or found.

        on_done is called as each is there. Raises BuildError for the first that fails.
        """
        library_key = kernel_library_key(self._target, self._versions)
        keys = {segment_key(form, self._target, self._versions): form for form in forms}
        done = {key: found for key in (library_key, *keys) if (found := self._found(key))}
        for found in done.values():
            on_done(found)
        with tempfile.TemporaryDirectory(dir=self._work, prefix=".lower-", ignore_cleanup_errors=True) as scratch:
            pending: dict[Future[None], tuple[str, Path]] = {}
            for key in (library_key, *keys):
                if key not in done:
                    output = Path(scratch) / (key + SUFFIX)
                    pending[self._submit(output, keys.get(key))] = key, output
            for future in as_completed(pending):
                key, output = pending[future]
                _check(future, key)
                done[key] = Lowered(key=key, file=self._store.add(key, SUFFIX, output), reused=False)
                on_done(done[key])
        return done[library_key], {form: done[key] for key, form in keys.items()}

    def _submit(self, output: Path, form: str | None) -> "Future[None]":
        if form is None:
            return self._pool.submit(library.compile_library, self._target.compiler_flags, output)
        sources = segment_sources(self._debug_dump, output.stem)
        return self._pool.submit(lower_cpu.compile_form, form, str(self._target), output, sources)

    def _found(self, key: str) -> Lowered | None:
        file = self._store.find(key, SUFFIX)
        return Lowered(key=key, file=file, reused=True) if file else None


def _check(future: "Future[None]", key: str) -> None:
    try:
        future.result()
    except EngineError:
        raise
    except BrokenProcessPool as error:
        raise BuildError("a compiler process was killed", hint="most often for lack of memory; try --jobs 1") from error
    except Exception as error:
        tail = "\n".join(str(error).splitlines()[-20:])
        raise BuildError(
            f"segment {key} did not compile:\n{tail}", hint="run again with --debug-dump DIR and read the generated code"
        ) from error

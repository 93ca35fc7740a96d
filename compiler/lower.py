"""Stage 5: every distinct segment, and the library that they share, to native code.

Each is looked up in the store by key first. What is missing is compiled in parallel processes
and added to the store, so that the next build of the same architecture compiles nothing.
"""

import multiprocessing
import tempfile
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from ..artifacts.store import Store
from ..errors import BuildError, EngineError
from .backend import Backend
from .debug_dump import segment_sources

LIBRARY_SUFFIX = ".so"


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A compiled thing: its key, its file in the store, and whether it was there already. parts: files that it needs, by name."""

    key: str
    file: Path
    reused: bool
    parts: dict[str, Path] = field(default_factory=dict)


class Lowering:
    """A pool of compiler processes over a store; use it as a context manager.

    work: where intermediate files go, inside the build's own directory, so that what a killed
    build leaves is removed with it. debug_dump: a directory that also gets the generated code.
    """

    def __init__(self, *, backend: Backend, store: Store, jobs: int, work: Path, debug_dump: Path | None) -> None:
        self._backend, self._store = backend, store
        self._work, self._debug_dump = work.absolute(), debug_dump.absolute() if debug_dump else None  # compilers run elsewhere
        self._pool = ProcessPoolExecutor(max_workers=jobs, mp_context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> "Lowering":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def count(self, forms: Collection[str]) -> int:
        """How many things `run` will report."""
        return len(forms) + (self._backend.library_key() is not None)

    def run(self, forms: Iterable[str], on_done: Callable[[Lowered], None]) -> tuple[Lowered | None, dict[str, Lowered]]:
        """The library, if the target has one, and every form (canonical text), compiled or found.

        on_done is called as each is there. Raises BuildError for the first that fails.
        """
        library_key = self._backend.library_key()
        wanted: dict[str, str | None] = {} if library_key is None else {library_key: None}
        wanted |= {self._backend.segment_key(form): form for form in forms}
        done = {key: found for key, form in wanted.items() if (found := self._found(key, form))}
        for found in done.values():
            on_done(found)
        with tempfile.TemporaryDirectory(dir=self._work, prefix=".lower-", ignore_cleanup_errors=True) as scratch:
            pending: dict[Future[None], tuple[str, Path]] = {}
            for key, form in wanted.items():
                if key not in done:
                    directory = Path(scratch) / key
                    directory.mkdir()
                    output = directory / (key + self._suffix(form))
                    pending[self._submit(output, form)] = key, output
            for future in as_completed(pending):
                key, output = pending[future]
                _check(future, key)
                done[key] = self._add(key, output, wanted[key])
                on_done(done[key])
        return done[library_key] if library_key else None, {form: done[key] for key, form in wanted.items() if form is not None}

    def _suffix(self, form: str | None) -> str:
        return LIBRARY_SUFFIX if form is None else self._backend.suffix

    def _submit(self, output: Path, form: str | None) -> "Future[None]":
        if form is None:
            return self._pool.submit(self._backend.compile_library, output)
        return self._pool.submit(self._backend.compile, form, output, segment_sources(self._debug_dump, output.stem))

    def _add(self, key: str, output: Path, form: str | None) -> Lowered:
        """What was compiled, into the store: first the parts, so that whoever finds the entry finds them."""
        parts = {}
        for name in self._backend.parts(output) if form is not None else ():
            part = output.with_name(name)
            parts[name] = self._store.add(part.stem, part.suffix, part)
        return Lowered(key=key, file=self._store.add(key, self._suffix(form), output), reused=False, parts=parts)

    def _found(self, key: str, form: str | None) -> Lowered | None:
        file = self._store.find(key, self._suffix(form))
        if file is None:
            return None
        names = self._backend.parts(file) if form is not None else ()
        parts = {name: self._store.find(Path(name).stem, Path(name).suffix) for name in names}
        held = {name: part for name, part in parts.items() if part is not None}
        return Lowered(key=key, file=file, reused=True, parts=held) if len(held) == len(parts) else None


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

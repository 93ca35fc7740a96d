"""Stage 5: every distinct segment, and the library that they share, to native code in the artifact.

Each is looked up in the store by key first. What is missing is compiled in parallel processes
and added to the store, so that the next build of the same architecture compiles nothing. What
another build is compiling at the moment is waited for.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..artifacts.store.claim import Claim
from ..artifacts.store.keys import Identity
from ..artifacts.store.store import PATIENCE, Store
from ..errors import BuildError, EngineError
from .backend import Backend
from .debug_dump import segment_sources
from .environment import enter_compiler_process

KERNELS, SEGMENTS = "kernels", "segments"
LIBRARY_SUFFIX = ".so"


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A compiled thing: its identity, its file in the artifact, and whether it came from the store."""

    identity: Identity
    file: Path
    reused: bool

    @property
    def key(self) -> str:
        return self.identity.key


CodeIdentities = Mapping[str | None, Identity]
"""What to lower: forms (canonical text), and the library under None if the target has one."""


def code_identities(backend: Backend, forms: Iterable[str]) -> CodeIdentities:
    """All that a program with those forms needs."""
    library = backend.library()
    return ({} if library is None else {None: library}) | {form: backend.segment(form) for form in forms}


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Something to compile: a form, or the library (None). The claim is held until it is in the store."""

    identity: Identity
    form: str | None
    output: Path
    claim: Claim


class Lowering:
    """A pool of compiler processes over a store; use it as a context manager.

    artifact: the directory that gets the code; intermediate files are in it as well, so that what a
    killed build leaves is removed with it. debug_dump: a directory that also gets the generated code.
    """

    def __init__(self, *, backend: Backend, store: Store, jobs: int, artifact: Path, debug_dump: Path | None) -> None:
        self._backend, self._store = backend, store
        self._artifact = artifact.absolute()  # compilers run elsewhere
        self._debug_dump = debug_dump.absolute() if debug_dump else None
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(jobs, context, initializer=enter_compiler_process, initargs=(os.getpid(),))

    def __enter__(self) -> "Lowering":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, wanted: CodeIdentities, on_done: Callable[[Lowered], None], on_wait: Callable[[], None]) -> dict[str | None, Lowered]:
        """All that is wanted, found or compiled, by the same names.

        on_done is called as each is there, on_wait where there is nothing to do but wait for other builds.
        Raises BuildError for the first that fails.
        """
        done: dict[str | None, Lowered] = {}
        running: dict[Future[None], _Job] = {}

        def finish(form: str | None, lowered: Lowered) -> None:
            done[form] = lowered
            on_done(lowered)

        for form, lowered in self._those_found(wanted):
            finish(form, lowered)
        with ExitStack() as claims, self._scratch() as scratch:
            while len(done) < len(wanted):
                ours = self._claimed(wanted.keys() - done.keys() - {job.form for job in running.values()}, wanted, claims)
                for form, lowered in self._those_found({form: wanted[form] for form in ours}):  # by whoever had the claim before us
                    finish(form, lowered)
                    ours.pop(form).release()
                for form, claim in ours.items():
                    job = _Job(identity=wanted[form], form=form, output=self._output(scratch, wanted[form], form), claim=claim)
                    running[self._submit(job)] = job
                others = len(wanted) - len(done) - len(running)
                if others and not running:
                    on_wait()
                    time.sleep(PATIENCE)
                for future in wait(running, PATIENCE if others else None, FIRST_COMPLETED).done:
                    job = running.pop(future)
                    _check(future, job.identity)
                    finish(job.form, self._kept(job))
                    job.claim.release()
        return done

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self._artifact, prefix=".lower-", ignore_cleanup_errors=True) as path:
            yield Path(path)

    def _claimed(self, forms: Collection[str | None], wanted: CodeIdentities, claims: ExitStack) -> dict[str | None, Claim]:
        """Claims on those of `forms` that no other build has.

        None is waited for, so builds that want the same things in another order cannot lock up.
        """
        ours = {}
        for form in (form for form in wanted if form in forms):
            if (claim := self._store.claim(wanted[form])) is not None:
                ours[form] = claims.enter_context(claim)
        return ours

    def _those_found(self, wanted: CodeIdentities) -> Iterator[tuple[str | None, Lowered]]:
        for form, identity in wanted.items():
            if (found := self._found(identity, form)) is not None:
                yield form, found

    def _found(self, identity: Identity, form: str | None) -> Lowered | None:
        entry = self._store.find(identity)
        return None if entry is None else self._placed(identity, form, entry.contents, reused=True)

    def _kept(self, job: _Job) -> Lowered:
        """What was compiled, into the store and the artifact."""
        names = [job.output.name, *(self._backend.parts(job.output) if job.form is not None else ())]
        contents = {name: job.output.with_name(name).read_bytes() for name in names}
        self._store.add(job.identity, contents)
        return self._placed(job.identity, job.form, contents, reused=False)

    def _placed(self, identity: Identity, form: str | None, contents: Mapping[str, bytes], *, reused: bool) -> Lowered:
        main = self._name(identity, form)
        for name, content in contents.items():
            place = self._artifact / (SEGMENTS if form is not None and name == main else KERNELS) / name
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content)
        return Lowered(identity=identity, file=self._artifact / (KERNELS if form is None else SEGMENTS) / main, reused=reused)

    def _name(self, identity: Identity, form: str | None) -> str:
        return identity.key + (LIBRARY_SUFFIX if form is None else self._backend.suffix)

    def _output(self, scratch: Path, identity: Identity, form: str | None) -> Path:
        directory = scratch / identity.key
        directory.mkdir()
        return directory / self._name(identity, form)

    def _submit(self, job: _Job) -> "Future[None]":
        if job.form is None:
            return self._pool.submit(self._backend.compile_library, job.output)
        return self._pool.submit(self._backend.compile, job.form, job.output, segment_sources(self._debug_dump, job.identity.key))


def _check(future: "Future[None]", identity: Identity) -> None:
    try:
        future.result()
    except EngineError:
        raise
    except BrokenProcessPool as error:
        raise BuildError("a compiler process was killed", hint="most often for lack of memory; try --jobs 1") from error
    except Exception as error:
        tail = "\n".join(str(error).splitlines()[-20:])
        raise BuildError(
            f"{identity.kind} {identity.key} did not compile:\n{tail}", hint="run again with --debug-dump DIR and read the generated code"
        ) from error

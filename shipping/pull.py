"""`engine pull`: an artifact from a repository on the hub, whole or not at all.

Everything arrives in `.DIR.pulling` beside DIR. A file is moved to its place there only when its
SHA-256 is the manifest's, and the directory to DIR only when all files are there. What is left of
an interrupted pull is where the next one goes on, in the middle of a file if need be; files that
DIR itself holds already do not travel either.
"""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from filelock import lock_descriptor

from ..artifacts import FileInfo, Manifest, seal, verify
from ..artifacts.files import file_digest
from ..artifacts.manifest import MANIFEST_NAME
from ..artifacts.read_manifest import parse_manifest
from ..errors import ArtifactError, TransferError, UsageError
from .hub import BrokenConnectionError, RemoteFile, Repository, disk_error
from .options import PullOptions
from .progress import TransferBar
from .push import BESIDE, Shipped, artifact_files

CONNECTIONS = 8
ATTEMPTS = 5
"""How often in a row a connection may break without one more byte having come."""
RETRY_S = 1.0


def pull(options: PullOptions, bar: TransferBar) -> Shipped:
    """Bring the artifact to `options.output`. One that is there already and the same stays as it is.

    Raises ArtifactError for what is no artifact, or not what its manifest says; UsageError for an output that must
    not be replaced, TransferError for what the hub, the network or the disk refuses.
    """
    source = _Source.open(options.repo, options.revision)
    if _is_there(options.output, source):
        return source.shipped([], 0)
    seal.check_replaceable(options.output, force=options.force)
    with _scratch(options.output) as scratch:
        sent = _fetch(source, source.manifest.files, scratch, options.output, bar)
        artifact = scratch / "artifact"
        source.write_beside(artifact)
        seal.write_manifest(artifact, source.manifest, source.raw)
        seal.seal(artifact, options.output)
    return source.shipped([*sent, *source.beside, MANIFEST_NAME], sum(sent.values()))


@contextmanager
def pulled_code(options: PullOptions, bar: TransferBar) -> Iterator[Path]:
    """The code of the artifact alone, whether it has weights or not, in a directory that lasts as long as the body."""
    source = _Source.open(options.repo, options.revision)
    seal.check_replaceable(options.output, force=options.force)
    with _scratch(options.output) as scratch:
        _fetch(source, {name: source.manifest.files[name] for name in source.manifest.code_files}, scratch, options.output, bar)
        manifest = scratch / "artifact" / MANIFEST_NAME
        manifest.write_bytes(source.raw)
        try:
            yield scratch / "artifact"
        finally:
            manifest.unlink()


@dataclass(frozen=True, kw_only=True)
class _Source:
    """An artifact on the hub, at one commit."""

    repository: Repository
    commit: str
    remote: dict[str, RemoteFile]
    raw: bytes
    manifest: Manifest

    @classmethod
    def open(cls, repo: str, revision: str | None) -> "_Source":
        """Read the manifest. Raises ArtifactError if there is none, or if a file that it lists is not there in its size."""
        repository = Repository(repo)
        commit = repository.head(revision).commit
        remote = repository.files(commit)
        if MANIFEST_NAME not in remote:
            raise ArtifactError(f"{repo} is not an artifact: it has no {MANIFEST_NAME}", hint=_not_artifact_hint(repo, remote))
        with repository.read(commit, MANIFEST_NAME) as (_, pieces):
            raw = b"".join(pieces)
        manifest = parse_manifest(raw, Path(repo) / MANIFEST_NAME)
        for name, info in manifest.files.items():
            if name not in remote or remote[name].bytes != info.bytes:
                state = f"has {remote[name].bytes:,} bytes of" if name in remote else "lacks"
                raise ArtifactError(
                    f"{repo} {state} {name} ({info.bytes:,} bytes by its manifest)", hint="push the artifact again: engine push DIR REPO"
                )
        return cls(repository=repository, commit=commit, remote=remote, raw=raw, manifest=manifest)

    @property
    def beside(self) -> list[str]:
        """What lies beside the manifest and is said of it."""
        return [name for name in self.remote if Path(name).match(BESIDE) and "/" not in name and name != MANIFEST_NAME]

    def write_beside(self, directory: Path) -> None:
        for name in self.beside:
            with self.repository.read(self.commit, name) as (_, pieces):
                (directory / name).write_bytes(b"".join(pieces))

    def shipped(self, names: list[str], count: int) -> Shipped:
        return Shipped(
            repo=self.repository.name,
            commit=self.commit,
            files=len(self.manifest.files) + len(self.beside) + 1,
            sent_files=len(names),
            sent_bytes=count,
        )


def _not_artifact_hint(repo: str, remote: Iterable[str]) -> str:
    if "config.json" in remote:
        return f"this looks like a checkpoint; compile it: engine build {repo} -o DIR"
    return "engine push DIR REPO puts one there; or name the branch that has it with --revision"


def _is_there(output: Path, source: _Source) -> bool:
    try:
        if (output / MANIFEST_NAME).read_bytes() != source.raw:
            return False
        verify(output, source.manifest)
        ours = artifact_files(output, source.manifest)
        return all(name in ours and source.remote[name].holds(output / name, ours[name]) for name in source.beside)
    except (OSError, ArtifactError):
        return False


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """`.DIR.pulling` beside `output`, held against other pulls. It stays if the body fails: the next pull goes on with it."""
    scratch = output.parent / f".{output.name}.pulling"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        handle = os.open(scratch, os.O_RDONLY)
        try:
            if not lock_descriptor(handle, blocking=False):
                raise UsageError(f"another pull to {output} is at work", hint="wait for it, or choose another place with -o")
            yield scratch
            shutil.rmtree(scratch)
        finally:
            os.close(handle)
    except OSError as error:
        raise disk_error(error) from error


@dataclass(frozen=True, kw_only=True)
class _Content:
    """Files of the same content, which travels once. part: where it arrives."""

    names: list[str]
    info: FileInfo
    part: Path


@dataclass(kw_only=True)
class _Fetching:
    """What all threads of a pull share. stop: set once one of them has failed."""

    source: _Source
    artifact: Path
    bar: TransferBar
    stop: threading.Event = field(default_factory=threading.Event)


def _fetch(source: _Source, files: dict[str, FileInfo], scratch: Path, output: Path, bar: TransferBar) -> dict[str, int]:
    """Bring `files` into scratch/artifact, and nothing else there. Returns the bytes that travelled of each that was missing."""
    artifact, parts = scratch / "artifact", scratch / "parts"
    for directory in (artifact, parts):
        directory.mkdir(exist_ok=True)
    _remove_others(artifact, files)
    bar.begin("check", sum(info.bytes for info in files.values()))
    missing = {name: info for name, info in files.items() if not _found(name, info, artifact, output, bar)}
    contents = [
        _Content(names=[name for name in missing if missing[name].sha256 == sha256], info=info, part=parts / sha256)
        for sha256, info in {info.sha256: info for info in missing.values()}.items()
    ]
    _remove_others(parts, [content.part.name for content in contents])
    arrived = sum(content.part.stat().st_size for content in contents if content.part.exists())
    total = sum(content.info.bytes for content in contents)
    _check_room(scratch, sum(info.bytes for info in missing.values()) - arrived)
    bar.begin("pull", total)
    fetching = _Fetching(source=source, artifact=artifact, bar=bar)
    return _in_parallel(contents, lambda content: _fetch_content(content, fetching), fetching.stop)


def _remove_others(directory: Path, names: Iterable[str]) -> None:
    wanted = {directory / name for name in names}
    for path in [path for path in directory.rglob("*") if path.is_file() and path not in wanted]:
        path.unlink()


def _found(name: str, info: FileInfo, artifact: Path, output: Path, bar: TransferBar) -> bool:
    """Whether the file is in its place already, or now is, because the artifact to be replaced has the same."""
    place = artifact / name
    for path in (place, output / name):
        if path.is_file() and not path.is_symlink() and path.stat().st_size == info.bytes and file_digest(path) == info.sha256:
            if path != place:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.unlink(missing_ok=True)
                _link(path, place)
            bar.advance(info.bytes, name)
            return True
    return False


def _link(path: Path, place: Path) -> None:
    try:
        os.link(path, place)
    except OSError:  # on another disk, or on one that has no links
        shutil.copyfile(path, place)


def _check_room(scratch: Path, needed: int) -> None:
    free = shutil.disk_usage(scratch).free
    if needed > free:
        raise TransferError(
            f"{needed:,} bytes are to come, and {scratch.parent} has room for {free:,}",
            hint="free some space, or choose another place with -o",
        )


def _in_parallel(contents: list[_Content], fetch: Callable[[_Content], int], stop: threading.Event) -> dict[str, int]:
    """Fetch all, several at a time; after the first failure nothing goes on."""
    sent: dict[str, int] = {}
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        futures = {pool.submit(fetch, content): content for content in contents}
        try:
            for future in as_completed(futures):
                sent |= dict.fromkeys(futures[future].names, 0) | {futures[future].names[0]: future.result()}
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return sent


def _fetch_content(content: _Content, fetching: _Fetching) -> int:
    """Bring one content and put it where it belongs. Returns the bytes that travelled. Raises ArtifactError for a wrong digest."""
    name, info = content.names[0], content.info
    with content.part.open("ab") as file:
        digest, travelled = _receive(content, file, fetching)
    if digest != info.sha256:
        content.part.unlink()
        raise ArtifactError(
            f"{name} of {fetching.source.repository.name} is damaged: SHA-256 {digest[:16]}…, the manifest says {info.sha256[:16]}…",
            hint="run engine pull again; if it stays so, push the artifact again",
        )
    first, *others = [fetching.artifact / each for each in content.names]
    for place in (first, *others):
        place.parent.mkdir(parents=True, exist_ok=True)
    for place in others:
        shutil.copyfile(content.part, place)
    content.part.replace(first)
    return travelled


def _receive(content: _Content, file: BinaryIO, fetching: _Fetching) -> tuple[str, int]:
    """Append what is missing. Goes on after a connection that broke. Returns the SHA-256 of all of it, and the bytes that travelled."""
    digest, size = _hash_part(content)
    fetching.bar.advance(size, content.names[0])
    travelled = failures = 0
    while size < content.info.bytes:
        before = size
        try:
            with fetching.source.repository.read(fetching.source.commit, content.names[0], size) as (start, pieces):
                if start != size:  # the hub begins anew
                    fetching.bar.advance(-size)
                    file.truncate(0)
                    digest, size = hashlib.sha256(), 0
                for piece in pieces:
                    if fetching.stop.is_set():
                        raise TransferError("another file could not be fetched", hint="the other file's error says why")
                    file.write(piece)
                    digest.update(piece)
                    size, travelled = size + len(piece), travelled + len(piece)
                    fetching.bar.advance(len(piece))
            broken = None
        except BrokenConnectionError as error:
            broken = error
        failures = 0 if size > before else failures + 1
        if failures == ATTEMPTS:
            raise broken or TransferError(f"the hub sends nothing of {content.names[0]}", hint="run engine pull again")
        if broken:
            time.sleep(RETRY_S)
    return digest.hexdigest(), travelled


def _hash_part(content: _Content) -> tuple["hashlib._Hash", int]:
    """The digest so far and the size of what has arrived; more than there should be is thrown away."""
    size = content.part.stat().st_size
    if size > content.info.bytes:
        os.truncate(content.part, 0)
    with content.part.open("rb") as file:
        return hashlib.file_digest(file, "sha256"), content.part.stat().st_size

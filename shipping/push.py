"""`engine push`: an artifact to a repository on the hub, in one commit.

Files go there first, unseen, and those that the hub has already are not sent again: neither those
of the artifact that was there before, nor those that an interrupted push brought. The commit puts
all in place at once, so nobody ever pulls half of one artifact and half of another.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..artifacts import FileInfo, Manifest, load_manifest, verify
from ..artifacts.files import file_digest
from ..artifacts.manifest import MANIFEST_NAME
from ..artifacts.read_manifest import parse_manifest
from ..errors import ArtifactError, UsageError
from .hub import RemoteFile, Repository
from .options import PushOptions
from .progress import TransferBar

BATCH_BYTES = 64 << 20
BATCH_FILES = 50
BESIDE = "manifest.*"
"""The manifest itself and what is said of it, a signature for one: files of an artifact that no manifest can list."""


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """commit: of the repository. files: of the artifact. sent_files, sent_bytes: what had to travel."""

    repo: str
    commit: str
    files: int
    sent_files: int
    sent_bytes: int


def push(options: PushOptions, bar: TransferBar) -> Shipped:
    """Put the artifact at `options.directory` into the repository, which is made if there is none.

    Raises ArtifactError for one that is damaged, UsageError for options that cannot work, TransferError for what the hub refuses.
    """
    directory, revision = options.directory, options.revision or "main"
    manifest = load_manifest(directory)
    repository = Repository(options.repo)
    bar.begin("check", sum(info.bytes for info in manifest.files.values()))
    verify(directory, manifest, lambda name, count: bar.advance(count, name))
    _prepare(repository, options)
    head = repository.head(revision)
    remote = repository.files(head.commit)
    ours = artifact_files(directory, manifest)
    missing = {name: info for name, info in ours.items() if name not in remote or not remote[name].holds(directory / name, info)}
    stale = _stale(repository, head.commit, remote, ours) if MANIFEST_NAME in missing else []
    sent = sum(info.bytes for info in missing.values())
    bar.begin("push", sent)
    uploaded = []
    for batch in _batches(missing):
        uploaded += repository.upload({name: directory / name for name in batch}, revision)
        bar.advance(sum(info.bytes for info in batch.values()), next(reversed(batch)))
    commit = head.commit
    if uploaded or stale:
        message = f"{manifest.model.name} for {manifest.target}"
        commit = repository.commit(uploaded, stale, message, revision=revision, parent=head.commit)
    return Shipped(repo=options.repo, commit=commit, files=len(ours), sent_files=len(missing), sent_bytes=sent)


def artifact_files(directory: Path, manifest: Manifest) -> dict[str, FileInfo]:
    """Every file that belongs to an artifact, the manifest last."""
    beside = [path for path in sorted(directory.glob(BESIDE)) if path.is_file() and path.name != MANIFEST_NAME]
    described = {path.name: FileInfo(bytes=path.stat().st_size, sha256=file_digest(path)) for path in [*beside, directory / MANIFEST_NAME]}
    return {**manifest.files, **described}


def _prepare(repository: Repository, options: PushOptions) -> None:
    """Make the repository and the branch if they are not there."""
    head = repository.head_or_none()
    if head is None:
        repository.create(private=options.private)
    elif options.private and not head.private:
        raise UsageError(
            f"{options.repo} exists and everybody can read it", hint="make it private on its page first, or leave --private out"
        )
    if options.revision not in (None, "main"):
        repository.create_branch(options.revision)


def _stale(repository: Repository, commit: str, remote: Mapping[str, RemoteFile], ours: Mapping[str, FileInfo]) -> list[str]:
    """Files of the artifact that was there before and is to be replaced. What else is in the repository is none of our business."""
    if MANIFEST_NAME not in remote:
        return []
    with repository.read(commit, MANIFEST_NAME) as (_, pieces):
        raw = b"".join(pieces)
    try:
        before = parse_manifest(raw, Path(MANIFEST_NAME))
    except ArtifactError:
        return []
    return sorted(name for name in before.files if name in remote and name not in ours)


def _batches(files: Mapping[str, FileInfo]) -> Iterator[dict[str, FileInfo]]:
    """Files in order, some together: each batch costs a few requests, and an interrupted one is begun anew."""
    batch: dict[str, FileInfo] = {}
    for name, info in files.items():
        batch[name] = info
        if len(batch) == BATCH_FILES or sum(item.bytes for item in batch.values()) >= BATCH_BYTES:
            yield batch
            batch = {}
    if batch:
        yield batch

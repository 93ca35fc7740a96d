"""One repository on the Hugging Face hub, as pushing and pulling use it: every error of the hub's library becomes one of ours.

The library (an extra: serving does not need it) is imported with the first `Repository`. It takes
the address of the hub, the token and whether there is a network from HF_ENDPOINT, HF_TOKEN or
`hf auth login`, and HF_HUB_OFFLINE.
"""

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..artifacts import FileInfo
from ..errors import EngineError, TransferError, UsageError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
READ_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """What the hub says of a file. sha256: of one in large file storage; git_sha1: else, of its blob."""

    bytes: int
    sha256: str | None
    git_sha1: str

    def holds(self, path: Path, info: FileInfo) -> bool:
        """Whether its content is that of the local file at `path`, whose digest is known."""
        if self.sha256 is not None or self.bytes != info.bytes:
            return self.sha256 == info.sha256
        return self.git_sha1 == hashlib.sha1(b"blob %d\0" % info.bytes + path.read_bytes(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Head:
    """The commit that a branch or tag names now, and who may read the repository."""

    commit: str
    private: bool


class Repository:
    """`organization/name` on the hub. Every method raises TransferError for what the hub, the network or the disk refuses."""

    def __init__(self, name: str) -> None:
        """Raises UsageError for what cannot be a name, and where the hub's library is not installed."""
        if _NAME.fullmatch(name) is None:
            raise UsageError(f"{name!r} is not the name of a repository", hint="it is organization/name, or your user name/name")
        self.name = name
        self._library, self._utils = _library()
        self._api = self._library.HfApi(library_name="engine")

    def head(self, revision: str | None) -> Head:
        """What a branch, tag or commit (default: the main branch) stands for."""
        with self._explained():
            info = self._api.model_info(self.name, revision=revision or "main")
        return Head(commit=info.sha, private=bool(info.private))

    def head_or_none(self) -> Head | None:
        """The main branch, None if there is no such repository, or none that the token may see."""
        try:
            return self.head(None)
        except _NotThereError:
            return None

    def create(self, *, private: bool) -> None:
        with self._explained(writing=True):
            self._api.create_repo(self.name, private=private)

    def create_branch(self, branch: str) -> None:
        """Make a branch of the main one, if there is none of that name."""
        with self._explained(writing=True):
            self._api.create_branch(self.name, branch=branch, exist_ok=True)

    def files(self, commit: str) -> dict[str, RemoteFile]:
        """Every file of a commit, by its path."""
        with self._explained():
            entries = self._api.list_repo_tree(self.name, recursive=True, revision=commit)
            return {
                entry.path: RemoteFile(bytes=entry.size, sha256=entry.lfs.sha256 if entry.lfs else None, git_sha1=entry.blob_id)
                for entry in entries
                if hasattr(entry, "size")
            }

    @contextmanager
    def read(self, commit: str, path: str, start: int = 0) -> Iterator[tuple[int, Iterator[bytes]]]:
        """A file's content in pieces, and the byte with which they begin: `start`, or 0 if the hub cannot."""
        utils = self._utils
        url = self._library.hf_hub_url(self.name, path, revision=commit)
        headers = utils.build_hf_headers(library_name="engine") | {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with (
            self._explained(),
            utils.get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=READ_TIMEOUT_S) as response,
        ):
            utils.hf_raise_for_status(response)
            yield start if response.status_code == 206 else 0, response.iter_bytes()

    def upload(self, files: Mapping[str, Path], revision: str) -> list[Any]:
        """Send the content of files that the hub does not have yet; it becomes visible with `commit`, which takes the result."""
        operations = [self._library.CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in files.items()]
        with self._explained(writing=True):
            self._api.preupload_lfs_files(self.name, additions=operations, revision=revision, free_memory=False)
        return operations

    def commit(self, uploaded: Sequence[Any], deleted: Sequence[str], message: str, *, revision: str, parent: str) -> str:
        """Put all that was uploaded in place, and take away what is to be deleted, at once. Returns the commit; parent: the one before."""
        operations = [*uploaded, *(self._library.CommitOperationDelete(path_in_repo=name) for name in deleted)]
        with self._explained(writing=True):
            done = self._api.create_commit(
                self.name, operations=operations, commit_message=message, revision=revision, parent_commit=parent
            )
        return str(done.oid)

    @contextmanager
    def _explained(self, *, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            raise _explain(self.name, error, writing=writing) from error


class BrokenConnectionError(TransferError):
    """The network or the hub failed, and may work the next time."""

    way_out = "run the same command again: it goes on where it stopped"


class _NotThereError(TransferError):
    """No such repository, or none that the token may see: the hub does not tell the two apart."""

    way_out = "check the spelling; for a private one set HF_TOKEN or run `hf auth login`"


def _library() -> tuple[Any, Any]:
    try:
        library, utils = (import_module(name) for name in ("huggingface_hub", "huggingface_hub.utils"))
    except ModuleNotFoundError as error:
        raise UsageError(f"the package {error.name} is not installed", hint="pip install 'engine-llm[hub]'") from None
    utils.disable_progress_bars()  # ours are on stderr already
    return library, utils


def transport_errors() -> tuple[type[Exception], ...]:
    """What a connection that breaks raises: the library's client is httpx in one version and httpx2 in another."""
    modules = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return tuple(module.TransportError for module in modules)


def _explain(name: str, error: Exception, *, writing: bool) -> EngineError:
    """An error of the hub's library, its HTTP client or the disk, as ours. Never says more of a request than its address."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    match error:
        case OfflineModeIsEnabled():
            return TransferError(f"HF_HUB_OFFLINE is set, so {name} cannot be reached", hint="unset it where there is a network")
        case GatedRepoError():
            return TransferError(f"the hub gives {name} only to people who accepted its terms", hint="accept them on its page")
        case RepositoryNotFoundError():
            return _NotThereError(f"the hub has no {name}, or does not show it to you")
        case RevisionNotFoundError():
            return TransferError(f"{name} has no such revision", hint="--revision takes a branch, a tag or a commit")
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            wanted = "that may write" if writing else "that may read it"
            return TransferError(
                f"the hub does not let you {'write to' if writing else 'read'} {name}", hint=f"set HF_TOKEN to a token {wanted}"
            )
        case HfHubHTTPError() if error.response.status_code == 412:
            return TransferError(f"somebody else has changed {name} meanwhile", hint="push again")
        case HfHubHTTPError():
            kind = BrokenConnectionError if error.response.status_code >= 500 else TransferError
            return kind(
                f"the hub answered {error.response.status_code} for {name}: {error.server_message or 'no reason given'}",
                hint="what has been transferred stays: run the same command again",
            )
        case _ if isinstance(error, transport_errors()):
            return BrokenConnectionError(
                f"the hub at {constants.ENDPOINT} cannot be reached: {error}",
                hint="check the network and HF_ENDPOINT; what has been transferred stays: run the same command again",
            )
        case OSError() if error.errno is not None:
            return disk_error(error)
    return TransferError(f"{name}: {error}", hint="what has been transferred stays: run the same command again")


def disk_error(error: OSError) -> TransferError:
    return TransferError(
        f"{error.filename or 'the disk'}: {error.strerror or error}",
        hint="free some space, or choose another place; what has arrived stays",
    )

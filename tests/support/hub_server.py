"""A hub of models on this machine: the endpoints that the Hugging Face hub's library uses to create, push, list and fetch. No git.

Small files are blobs that travel inside a commit; others are in large file storage, whose content
goes to and comes from another host name ("localhost" instead of "127.0.0.1"), as with the real one,
to which a token must never be sent. What travels is counted.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 10_000
"""Bytes from which a file goes into large file storage, as do all that are not text."""
PIECE = 4096
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass(frozen=True)
class Stored:
    """A file of a commit. oid: of its content in large file storage, None for a blob."""

    content: bytes
    oid: str | None

    @property
    def blob_id(self) -> str:
        shown = self.content if self.oid is None else f"oid sha256:{self.oid}".encode()
        return hashlib.sha1(b"blob %d\0" % len(shown) + shown).hexdigest()


@dataclass
class Repo:
    """commits: files by path, by commit. branches: names of commits."""

    private: bool
    commits: dict[str, dict[str, Stored]]
    branches: dict[str, str]

    def add_commit(self, branch: str, files: dict[str, Stored]) -> str:
        seed = "".join(f"{path}{file.blob_id}" for path, file in sorted(files.items())) + str(len(self.commits))
        commit = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


@dataclass
class Stall:
    """The transfer of this path's content stops after some bytes, until the end of the server: `reached` is set then."""

    sha256: str
    after: int
    reached: threading.Event = field(default_factory=threading.Event)


class HubServer:
    """Serves while the body of a `with` runs. tokens: who may write (`write`) or only read (`read`)."""

    WRITE, READ = "hf_write_0123456789", "hf_read_0123456789"

    def __init__(self) -> None:
        self.released = threading.Event()
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """An empty hub; transfers that were stalled end."""
        self.released.set()
        self.released = threading.Event()
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.received: Counter[str] = Counter()
        """Bytes of content that came, by SHA-256; of blobs too."""
        self.sent: Counter[str] = Counter()
        """Bytes of content that went, by path."""
        self.ranges: list[str] = []
        self.damaged: dict[str, bytes] = {}
        """What is sent instead of the content of a path."""
        self.stall: Stall | None = None
        self.cut_after: int | None = None
        """The next content that is longer breaks off after so many bytes."""

    def __enter__(self) -> "HubServer":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def environment(self) -> dict[str, str]:
        """What makes the hub's library use this server, and no token of the user's."""
        settings = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0", "HF_HOME": "/nonexistent"}
        return settings | {"HF_ENDPOINT": self.url}

    def files(self, repo: str, revision: str = "main") -> dict[str, Stored]:
        found = self.repos[repo]
        return found.commits[found.branches.get(revision, revision)]

    def add(self, repo: str, files: dict[str, bytes], *, private: bool = False) -> None:
        """A repository that somebody else has filled."""
        self.repos[repo] = Repo(private=private, commits={}, branches={})
        self.repos[repo].add_commit("main", {path: Stored(content, None) for path, content in files.items()})

    def count(self, counter: Counter[str], key: str, number: int) -> None:
        with self._lock:
            counter[key] += number


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self._unread = int(self.headers.get("content-length") or 0)
        try:
            for allowed, pattern, action in _ROUTES:
                if method in allowed and (match := re.fullmatch(pattern, path)):
                    action(self, **match.groupdict())
                    return
            raise _Refused(404, "NoSuchEndpoint", f"{method} {path} is not an endpoint of this hub")
        except _Refused as refused:
            self._body()
            self._send(refused.status, {"error": refused.message}, {"X-Error-Code": refused.code, "X-Error-Message": refused.message})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    # What requests carry.

    @property
    def _token(self) -> str | None:
        return (self.headers.get("authorization") or "").removeprefix("Bearer ") or None

    def _may_write(self) -> None:
        if self._token != HubServer.WRITE:
            status = 401 if self._token is None else 403
            raise _Refused(status, "Forbidden", "you have no right to write here")

    def _repo(self, name: str, *, write: bool = False) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self._token not in (HubServer.WRITE, HubServer.READ)):
            raise _Refused(401 if self._token is None else 404, "RepoNotFound", "Repository not found")
        if write:
            self._may_write()
        return repo

    def _commit(self, repo: Repo, revision: str) -> str:
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _body(self) -> bytes:
        size, self._unread = self._unread, 0
        return self.rfile.read(size)

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # Repositories.

    def create(self) -> None:
        wanted = json.loads(self._body())
        self._may_write()
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.repos:
            raise _Refused(409, "Conflict", "You already created this model repo")
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repos[name] = Repo(private=private, commits={}, branches={})
        self.hub.repos[name].add_commit("main", {".gitattributes": Stored(b"*.so filter=lfs\n", None)})
        self._send(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def branch(self, repo: str, branch: str) -> None:
        self._body()
        found = self._repo(repo, write=True)
        if branch in found.branches:
            raise _Refused(409, "Conflict", "Reference already exists")
        found.branches[branch] = found.branches["main"]
        self._send(201, {})

    def info(self, repo: str, revision: str = "main") -> None:
        found = self._repo(repo)
        commit = self._commit(found, revision)
        siblings = [{"rfilename": path} for path in found.commits[commit]]
        facts = {"id": repo, "modelId": repo, "sha": commit, "private": found.private, "tags": [], "downloads": 0, "likes": 0}
        self._send(200, facts | {"siblings": siblings})

    def tree(self, repo: str, revision: str) -> None:
        found = self._repo(repo)
        files = found.commits[self._commit(found, revision)]
        folders = sorted({path.rpartition("/")[0] for path in files if "/" in path})
        entries: list[dict[str, Any]] = [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in folders]
        for path, file in files.items():
            entry = {"type": "file", "path": path, "size": len(file.content), "oid": file.blob_id}
            large = {"lfs": {"oid": file.oid, "size": len(file.content), "pointerSize": 134}} if file.oid else {}
            entries.append(entry | large)
        self._send(200, entries)

    # Pushing.

    def preupload(self, repo: str, revision: str) -> None:
        wanted = json.loads(self._body())["files"]
        files = self._commit_files(repo, revision)
        answers = []
        for file in wanted:
            text = b"\0" not in base64.b64decode(file["sample"])
            answer = {"path": file["path"], "uploadMode": "regular" if text and file["size"] < LARGE else "lfs", "shouldIgnore": False}
            there = files.get(file["path"])
            answers.append(answer | ({"oid": there.oid or there.blob_id} if there else {}))
        self._send(200, {"files": answers})

    def _commit_files(self, repo: str, revision: str) -> dict[str, Stored]:
        found = self._repo(repo, write=True)
        return found.commits[self._commit(found, revision)]

    def batch(self, repo: str) -> None:
        wanted = json.loads(self._body())
        self._repo(repo, write=True)
        objects = []
        for item in wanted["objects"]:
            upload = {"actions": {"upload": {"href": f"http://localhost:{self.hub.port}/storage/{item['oid']}"}}}
            objects.append(item | ({} if item["oid"] in self.hub.large else upload))
        self._send(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        self._check_no_token()
        size, pieces, stall = self._unread, [], self.hub.stall
        self._unread = 0
        while size:
            piece = self.rfile.read(min(PIECE, size))
            if not piece:
                raise ConnectionResetError
            pieces.append(piece)
            size -= len(piece)
            if stall is not None and stall.sha256 == oid and sum(map(len, pieces)) >= stall.after:
                stall.reached.set()
                self.hub.released.wait()
                raise ConnectionResetError
        content = b"".join(pieces)
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Refused(400, "BadDigest", "the content is not what was announced")
        self.hub.large[oid] = content
        self.hub.count(self.hub.received, oid, len(content))
        self._send(200, {})

    def commit(self, repo: str, revision: str) -> None:
        lines = [json.loads(line) for line in self._body().splitlines()]
        found = self._repo(repo, write=True)
        parent = self._commit(found, revision)
        files = dict(found.commits[parent])
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    if value.get("parentCommit", parent) != parent:
                        raise _Refused(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
                case "file":
                    content = base64.b64decode(value["content"])
                    files[value["path"]] = Stored(content, None)
                    self.hub.count(self.hub.received, hashlib.sha256(content).hexdigest(), len(content))
                case "lfsFile":
                    files[value["path"]] = Stored(self.hub.large[value["oid"]], value["oid"])
                case "deletedFile":
                    del files[value["path"]]
                case other:
                    raise _Refused(400, "BadRequest", f"unknown operation {other}")
        commit = found.add_commit(revision, files)
        self._send(200, {"commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}"})

    # Fetching.

    def resolve(self, repo: str, revision: str, path: str) -> None:
        found = self._repo(repo)
        commit = self._commit(found, revision)
        file = found.commits[commit].get(path)
        if file is None:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.oid or file.blob_id}"', "Accept-Ranges": "bytes"}
        if file.oid is None:
            self._send_content(path, file.content, headers)
            return
        self.send_response(302)
        place = f"http://localhost:{self.hub.port}/storage/{file.oid}/{path}"
        linked = {"Location": place, "X-Linked-Size": str(len(file.content)), "X-Linked-ETag": f'"{file.oid}"', "Content-Length": "0"}
        for name, text in (headers | linked).items():
            self.send_header(name, text)
        self.end_headers()

    def stored(self, oid: str, path: str) -> None:
        self._check_no_token()
        self._send_content(path, self.hub.large[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _check_no_token(self) -> None:
        if self._token is not None:
            raise _Refused(400, "TokenLeaked", "storage needs no token, and must not be told one")

    def _send_content(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        content = self.hub.damaged.get(path, content)
        start, status = 0, 200
        if wanted := self.headers.get("range"):
            self.hub.ranges.append(f"{path} {wanted}")
            start, status = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]), 206  # type: ignore[index]
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self.send_response(status)
        for name, text in (headers | {"Content-Length": str(len(content) - start)}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self._write_content(path, content, start)

    def _write_content(self, path: str, content: bytes, start: int) -> None:
        stall, sha256 = self.hub.stall, hashlib.sha256(content).hexdigest()
        cut = self.hub.cut_after if len(content) > (self.hub.cut_after or 0) else None
        if cut is not None:
            self.hub.cut_after = None
        for begin in range(start, len(content), PIECE):
            piece = content[begin : begin + PIECE]
            self.wfile.write(piece)
            self.hub.count(self.hub.sent, path, len(piece))
            done = begin + len(piece)
            if stall is not None and stall.sha256 == sha256 and done >= stall.after:
                stall.reached.set()
                self.hub.released.wait()
                raise ConnectionResetError
            if cut is not None and done >= cut:
                raise ConnectionResetError


_ROUTES: list[tuple[tuple[str, ...], str, Any]] = [
    (("POST",), r"/api/repos/create", _Handler.create),
    (("POST",), rf"/api/models/{_REPO}/branch/(?P<branch>.+)", _Handler.branch),
    (("GET",), rf"/api/models/{_REPO}", _Handler.info),
    (("GET",), rf"/api/models/{_REPO}/revision/(?P<revision>.+)", _Handler.info),
    (("GET",), rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", _Handler.tree),
    (("POST",), rf"/api/models/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), r"/storage/(?P<oid>[0-9a-f]{64})", _Handler.store),
    (("POST",), rf"/api/models/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
    (("GET", "HEAD"), rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    (("GET", "HEAD"), r"/storage/(?P<oid>[0-9a-f]{64})/(?P<path>.+)", _Handler.stored),
]

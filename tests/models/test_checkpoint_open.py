"""From what a person types to a checkpoint, or to an error that says what to type instead."""

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants
from random_checkpoints import write_random_checkpoint

from engine.errors import CheckpointError, UsageError
from engine.models.hf_checkpoint import HFCheckpoint
from engine.models.open import open_checkpoint


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub library's cache, empty, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("model", ["", "no-such-model", "no/such/model", "/no/such/model", "./no", "a b/c"])
def test_what_is_nothing_at_all(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError if model else CheckpointError):
        open_checkpoint(model)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_one_file_of_a_directory(file: str, tmp_path: Path) -> None:
    directory = write_random_checkpoint("llama", tmp_path / "model", num_hidden_layers=1)
    with pytest.raises(UsageError) as caught:
        open_checkpoint(str(directory / file))
    assert caught.value.hint == f"give its directory: {directory}"


def test_a_file_that_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("this is not a model, whatever its length may be")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        open_checkpoint(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        (["pytorch_model.bin"], "never read"),
        (["consolidated.00.pth"], "never read"),
        (["model-q4.gguf"], "give the file itself"),
        ([], "give a directory with"),
    ],
)
def test_a_directory_without_safetensors(files: list[str], hint: str, tmp_path: Path) -> None:
    directory = write_random_checkpoint("llama", tmp_path / "model", num_hidden_layers=1)
    (directory / "model.safetensors").unlink()
    for name in files:
        (directory / name).write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as caught:
        open_checkpoint(str(directory))
    assert hint in str(caught.value.hint)


def test_a_directory_with_a_gguf_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(tmp_path))
    assert caught.value.hint == f"give the file itself: {tmp_path / 'model.gguf'}"


def test_the_name_of_a_directory_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_random_checkpoint("llama", tmp_path / "tiny-llama", num_hidden_layers=1)
    monkeypatch.chdir(directory)
    assert open_checkpoint(".").name == "tiny-llama"


def test_a_hub_id_that_is_cached_needs_no_network(offline_hub: Path, tmp_path: Path) -> None:
    directory = write_random_checkpoint("llama", tmp_path / "model", num_hidden_layers=1)
    repository = offline_hub / "models--someone--tiny-llama"
    shutil.copytree(directory, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    checkpoint = open_checkpoint("someone/tiny-llama")
    assert isinstance(checkpoint, HFCheckpoint)
    assert checkpoint.name == "someone/tiny-llama"


@pytest.mark.usefixtures("offline_hub")
def test_a_hub_id_that_is_not_cached_without_a_network() -> None:
    with pytest.raises(CheckpointError, match="someone/no-such-model") as caught:
        open_checkpoint("someone/no-such-model")
    assert "HF_HUB_OFFLINE" in str(caught.value.hint)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def files_in(directory: Path) -> list[str]:
    return [str(path.relative_to(directory)) for path in sorted(directory.rglob("*")) if path.is_file()]


class Hub(http.server.ThreadingHTTPServer):
    """As much of the hub's API as a download uses: one repository, or one answer to everything."""

    def __init__(self, directory: Path | None = None, status: int = 404, code: str = "RepoNotFound") -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.directory, self.status, self.code = directory, status, code
        self.fetched: list[str] = []


class HubHandler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path, directory = self.path.partition("?")[0], self.server.directory
        if directory is None:
            self.answer(self.server.status, b"", {"X-Error-Code": self.server.code})
        elif path.startswith("/api/models/someone/tiny-llama/revision/"):
            siblings = [{"rfilename": name} for name in files_in(directory)]
            self.answer(200, json.dumps({"id": "someone/tiny-llama", "sha": COMMIT, "siblings": siblings}).encode(), {})
        elif path == f"/api/models/someone/tiny-llama/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": (directory / name).stat().st_size, "oid": COMMIT} for name in files_in(directory)
            ]
            self.answer(200, json.dumps(entries).encode(), {})
        elif path.startswith(f"/someone/tiny-llama/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/someone/tiny-llama/resolve/{COMMIT}/")
            self.server.fetched += [name] if self.command == "GET" else []
            self.answer(200, (directory / name).read_bytes(), {"ETag": f'"{name.replace("/", "-")}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing; the tests read what was answered."""


@contextmanager
def serving(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    url = f"http://127.0.0.1:{hub.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def test_a_hub_id_is_fetched_once_and_without_what_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_random_checkpoint("llama", tmp_path / "model", num_hidden_layers=1)
    for name in ("pytorch_model.bin", "consolidated.safetensors", "README.md", "onnx/model.safetensors"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(b"not needed")
    hub = Hub(directory)
    with serving(hub, tmp_path / "hub", monkeypatch):
        assert open_checkpoint("someone/tiny-llama").spec.num_layers == 1
        assert open_checkpoint("someone/tiny-llama").name == "someone/tiny-llama"
    assert sorted(hub.fetched) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (404, "RepoNotFound", "check the spelling"),
        (401, "RepoNotFound", "hf auth login"),
        (403, "GatedRepo", "accept them"),
        (500, "", "network"),
    ],
)
def test_what_the_hub_refuses(status: int, code: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Hub(status=status, code=code), tmp_path / "hub", monkeypatch), pytest.raises(CheckpointError) as caught:
        open_checkpoint("someone/tiny-llama")
    assert hint in str(caught.value.hint)

"""`engine push` and `engine pull` against a hub on this machine: real processes, and what travelled is counted."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from artifact_stand_in import write_artifact
from forking_engine import ForkingEngine, Started
from hub_server import HubServer, Stall
from patience import PATIENCE, wait_until

from engine.artifacts import load_manifest, seal, verify
from engine.artifacts.manifest import MANIFEST_NAME
from engine.errors import ArtifactError, TransferError, UsageError
from engine.shipping.pull import _check_room

ENGINE = Path(sys.executable).with_name("engine")
REPO = "team/echo-cpu"
WEIGHTS = "weights/00000.safetensors"
SIGNATURE = "manifest.sig"
SIZES = {"kernels/none.so": 30_000, "segments/first.so": 20_000, "segments/second.so": 20_000, WEIGHTS: 600_000}


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub


@pytest.fixture
def hub(server: HubServer) -> HubServer:
    """The hub, with nothing in it."""
    server.reset()
    return server


@pytest.fixture(scope="module")
def forking(server: HubServer) -> Iterator[ForkingEngine]:
    with ForkingEngine(surroundings(server, None)) as forking:
        yield forking


class Engine:
    """The command line, with a token that may write unless a test gives another."""

    def __init__(self, hub: HubServer, forking: ForkingEngine) -> None:
        self._hub, self._forking = hub, forking

    def __call__(self, *arguments: object, token: str | None = HubServer.WRITE, **environment: str) -> "subprocess.CompletedProcess[str]":
        """environment: variables that the hub's library reads when it is imported: a process from the start."""
        if environment:
            done = subprocess.run(
                command(*arguments), env=surroundings(self._hub, token) | environment, capture_output=True, text=True, check=False
            )
        else:
            done = self._forking.wait(self._start(*arguments, token=token))
        assert not any(secret in done.stdout + done.stderr for secret in (HubServer.WRITE, HubServer.READ))
        return done

    def succeed(self, *arguments: object, token: str | None = HubServer.WRITE) -> str:
        done = self(*arguments, token=token)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def killed(self, *arguments: object) -> Iterator[None]:
        """Runs a command; kills it after the body, as a machine that goes down would."""
        started = self._start(*arguments, token=HubServer.WRITE)
        try:
            yield
        finally:
            os.kill(started.pid, signal.SIGKILL)
            assert self._forking.wait(started).returncode == -signal.SIGKILL

    def _start(self, *arguments: object, token: str | None) -> Started:
        return self._forking.start([str(argument) for argument in arguments], {"HF_TOKEN": token} if token else {})


@pytest.fixture
def engine(hub: HubServer, forking: ForkingEngine) -> Engine:
    return Engine(hub, forking)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A few files with honest digests, two of the same content, and something beside the manifest."""
    directory = write_artifact(tmp_path / "artifact")
    for number, (name, size) in enumerate(SIZES.items()):
        put(directory, name, 1 if name.startswith("segments/") else number + 2, size)
    (directory / SIGNATURE).write_bytes(b"\0signed")
    describe(directory, target="cpu-x86-64-v3")
    return directory


def put(directory: Path, name: str, seed: int, size: int) -> None:
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_bytes(np.random.default_rng(seed).bytes(size))


def describe(directory: Path, **fields: Any) -> None:
    """Write the manifest anew: fields as given, and the digests of what is there."""
    files = {name: info for name, info in seal.file_infos(directory).items() if name != SIGNATURE}
    manifest = load_manifest(directory)
    tools = msgspec.structs.replace(manifest.toolchain, torch=version("torch"))
    manifest = msgspec.structs.replace(manifest, **{"files": files, "toolchain": tools, **fields})
    (directory / MANIFEST_NAME).write_bytes(manifest.encode())


def command(*arguments: object) -> list[str]:
    return [str(ENGINE), *map(str, arguments)]


def surroundings(hub: HubServer, token: str | None = HubServer.WRITE) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return inherited | hub.environment | ({"HF_TOKEN": token} if token else {})


def contents(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_there_and_back(engine: Engine, hub: HubServer, artifact: Path, tmp_path: Path) -> None:
    pushed = engine.succeed("push", artifact, REPO)
    assert {name: file.content for name, file in hub.files(REPO).items() if name != ".gitattributes"} == contents(artifact)
    assert f"{len(contents(artifact))} files, sent {len(contents(artifact))}" in pushed
    pulled = engine("pull", REPO, "-o", tmp_path / "pulled", token=None)
    assert (pulled.returncode, "warning" in pulled.stderr) == (0, False), pulled.stderr
    assert contents(tmp_path / "pulled") == contents(artifact)
    verify(tmp_path / "pulled", load_manifest(tmp_path / "pulled"))
    assert hub.sent["segments/first.so"] + hub.sent["segments/second.so"] == 20_000  # the same content travels once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "pulled"]


def test_what_the_hub_has_is_not_sent_again(engine: Engine, hub: HubServer, artifact: Path, tmp_path: Path) -> None:
    engine.succeed("push", artifact, REPO)
    commits = len(hub.repos[REPO].commits)
    hub.received.clear()
    assert "sent 0, 0 B" in engine.succeed("push", artifact, REPO)
    assert (hub.received.total(), len(hub.repos[REPO].commits)) == (0, commits)

    (artifact / "segments" / "second.so").unlink()
    put(artifact, "segments/third.so", 99, 25_000)
    describe(artifact)
    hub.repos[REPO].add_commit("main", {**hub.files(REPO), "README.md": hub.files(REPO)[".gitattributes"]})
    engine.succeed("push", artifact, REPO)
    manifest = (artifact / MANIFEST_NAME).read_bytes()
    assert hub.received == {sha256((artifact / "segments" / "third.so").read_bytes()): 25_000, sha256(manifest): len(manifest)}
    assert {"README.md", "segments/third.so"} <= hub.files(REPO).keys()
    assert "segments/second.so" not in hub.files(REPO)

    hub.sent.clear()
    shutil.copytree(artifact, tmp_path / "pulled")
    put(tmp_path / "pulled", "segments/third.so", 98, 25_000)  # an older artifact, but for one file the same
    describe(tmp_path / "pulled", created=5)
    assert engine("pull", REPO, "-o", tmp_path / "pulled").returncode == UsageError.exit_code
    engine.succeed("pull", REPO, "-o", tmp_path / "pulled", "--force")
    assert contents(tmp_path / "pulled") == contents(artifact)
    assert hub.sent[WEIGHTS] == hub.sent["kernels/none.so"] == 0
    assert hub.sent["segments/third.so"] == 25_000

    hub.sent.clear()
    assert "fetched 0, 0 B" in engine.succeed("pull", REPO, "-o", tmp_path / "pulled")
    assert hub.sent.keys() == {MANIFEST_NAME}

    (artifact / SIGNATURE).write_bytes(b"\0signed by somebody else")
    engine.succeed("push", artifact, REPO)
    assert engine("pull", REPO, "-o", tmp_path / "pulled").returncode == UsageError.exit_code
    engine.succeed("pull", REPO, "-o", tmp_path / "pulled", "--force")
    assert contents(tmp_path / "pulled") == contents(artifact)
    assert hub.sent.keys() == {MANIFEST_NAME, SIGNATURE}


def test_a_killed_push_goes_on(engine: Engine, hub: HubServer, artifact: Path) -> None:
    hub.stall = Stall(sha256((artifact / WEIGHTS).read_bytes()), after=100_000)
    with engine.killed("push", artifact, REPO):
        assert hub.stall.reached.wait(PATIENCE)
        large = {sha256((artifact / name).read_bytes()) for name in SIZES if name != WEIGHTS}
        wait_until(lambda: large <= hub.received.keys())
    assert hub.files(REPO).keys() == {".gitattributes"}  # nobody sees half of it
    hub.stall = None
    before = dict(hub.received)
    engine.succeed("push", artifact, REPO)
    assert {key: hub.received[key] for key in before} == before
    assert hub.received[sha256((artifact / WEIGHTS).read_bytes())] == SIZES[WEIGHTS]
    assert {name: file.content for name, file in hub.files(REPO).items() if name != ".gitattributes"} == contents(artifact)


def test_a_killed_pull_leaves_nothing_that_looks_finished_and_goes_on(
    engine: Engine, hub: HubServer, artifact: Path, tmp_path: Path
) -> None:
    engine.succeed("push", artifact, REPO)
    output, scratch = tmp_path / "place" / "pulled", tmp_path / "place" / ".pulled.pulling"
    hub.stall = Stall(sha256((artifact / WEIGHTS).read_bytes()), after=200_000)
    part = scratch / "parts" / hub.stall.sha256
    with engine.killed("pull", REPO, "-o", output):
        assert hub.stall.reached.wait(PATIENCE)
        wait_until(lambda: part.is_file() and part.stat().st_size >= 150_000 and (scratch / "artifact" / "segments" / "first.so").is_file())
        assert "another pull" in engine("pull", REPO, "-o", output).stderr
    assert [path.name for path in output.parent.iterdir()] == [scratch.name]
    assert list(scratch.rglob(MANIFEST_NAME)) == []
    hub.stall, had = None, part.stat().st_size
    hub.sent.clear()
    hub.ranges.clear()
    engine.succeed("pull", REPO, "-o", output)
    assert hub.ranges == [f"{WEIGHTS} bytes={had}-"]
    assert hub.sent[WEIGHTS] == SIZES[WEIGHTS] - had
    assert hub.sent["segments/first.so"] == hub.sent["segments/second.so"] == 0
    assert contents(output) == contents(artifact)
    assert [path.name for path in output.parent.iterdir()] == ["pulled"]


def test_a_connection_that_breaks_is_made_again(engine: Engine, hub: HubServer, artifact: Path, tmp_path: Path) -> None:
    for name in set(SIZES) - {WEIGHTS}:
        (artifact / name).unlink()
    describe(artifact, kernel_library="")
    engine.succeed("push", artifact, REPO)
    hub.cut_after = 250_000
    engine.succeed("pull", REPO, "-o", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == contents(artifact)
    (resumed,) = hub.ranges
    assert resumed.startswith(f"{WEIGHTS} bytes=")


def test_a_file_with_a_wrong_digest_is_refused_and_fetched_again(engine: Engine, hub: HubServer, artifact: Path, tmp_path: Path) -> None:
    engine.succeed("push", artifact, REPO)
    damaged = bytearray((artifact / WEIGHTS).read_bytes())
    damaged[1234] ^= 1
    hub.damaged[WEIGHTS] = bytes(damaged)
    done = engine("pull", REPO, "-o", tmp_path / "pulled")
    assert done.returncode == ArtifactError.exit_code
    assert f"{WEIGHTS} of {REPO} is damaged: SHA-256 {sha256(bytes(damaged))[:16]}" in done.stderr
    assert not (tmp_path / "pulled").exists()
    hub.damaged.clear()
    engine.succeed("pull", REPO, "-o", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == contents(artifact)


def test_a_damaged_artifact_is_not_pushed(engine: Engine, hub: HubServer, artifact: Path) -> None:
    put(artifact, WEIGHTS, 77, SIZES[WEIGHTS])
    assert engine("push", artifact, REPO).returncode == ArtifactError.exit_code
    assert hub.repos == {}


def test_a_repository_that_lacks_a_file_is_no_artifact(engine: Engine, hub: HubServer, artifact: Path, tmp_path: Path) -> None:
    files = {name: content for name, content in contents(artifact).items() if name != WEIGHTS}
    hub.add(REPO, files)
    done = engine("pull", REPO, "-o", tmp_path / "pulled")
    assert done.returncode == ArtifactError.exit_code
    assert f"{REPO} lacks {WEIGHTS}" in done.stderr


def test_branches_hold_artifacts_of_their_own(engine: Engine, hub: HubServer, artifact: Path, tmp_path: Path) -> None:
    engine.succeed("push", artifact, REPO, "--revision", "v3")
    assert MANIFEST_NAME not in hub.files(REPO)
    engine.succeed("pull", REPO, "-o", tmp_path / "pulled", "--revision", "v3")
    engine.succeed("pull", REPO, "-o", tmp_path / "same", "--revision", hub.repos[REPO].branches["v3"])
    assert contents(tmp_path / "pulled") == contents(tmp_path / "same") == contents(artifact)


def test_private_repositories_need_a_token(engine: Engine, hub: HubServer, artifact: Path, tmp_path: Path) -> None:
    engine.succeed("push", artifact, REPO, "--private")
    assert hub.repos[REPO].private
    done = engine("pull", REPO, "-o", tmp_path / "pulled", token=None)
    assert done.returncode == TransferError.exit_code
    assert "does not show it to you" in done.stderr
    assert "HF_TOKEN" in done.stderr
    engine.succeed("pull", REPO, "-o", tmp_path / "pulled", token=HubServer.READ)
    refused = engine("push", artifact, REPO, "--revision", "other", token=HubServer.READ)
    assert (refused.returncode, "does not let you write" in refused.stderr) == (TransferError.exit_code, True)
    hub.repos[REPO].private = False
    done = engine("push", artifact, REPO, "--private")
    assert (done.returncode, "everybody can read it" in done.stderr) == (UsageError.exit_code, True)


@pytest.mark.parametrize(
    ("line", "environment", "code", "words"),
    [
        ("pull team/nothing -o DIR", {}, TransferError.exit_code, "the hub has no team/nothing"),
        (
            "pull team/checkpoint -o DIR",
            {},
            ArtifactError.exit_code,
            "hint: this looks like a checkpoint; compile it: engine build team/checkpoint",
        ),
        ("pull team/checkpoint -o DIR --revision v9", {}, TransferError.exit_code, "has no such revision"),
        ("pull nothing -o DIR", {}, UsageError.exit_code, "'nothing' is not the name of a repository"),
        ("pull team/checkpoint -o DIR", {"HF_HUB_OFFLINE": "1"}, TransferError.exit_code, "HF_HUB_OFFLINE is set"),
        ("pull team/checkpoint -o DIR", {"HF_ENDPOINT": "http://127.0.0.1:9"}, TransferError.exit_code, "cannot be reached"),
        ("pull team/checkpoint -o DIR --name x", {}, UsageError.exit_code, "goes with --weights-from"),
        ("push DIR team/new", {}, ArtifactError.exit_code, "is not an artifact"),
    ],
)
def test_what_cannot_be(
    engine: Engine, hub: HubServer, tmp_path: Path, line: str, environment: dict[str, str], code: int, words: str
) -> None:
    hub.add("team/checkpoint", {"config.json": b"{}", "model.safetensors": b"weights"})
    done = engine(*[str(tmp_path / "place") if word == "DIR" else word for word in line.split()], **environment)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_push_without_the_right_to_write(engine: Engine, hub: HubServer, artifact: Path) -> None:
    done = engine("push", artifact, REPO, token=HubServer.READ)
    assert done.returncode == TransferError.exit_code
    assert f"the hub does not let you write to {REPO}" in done.stderr
    assert hub.repos == {}


def test_a_full_disk(engine: Engine, hub: HubServer, artifact: Path, tmp_path: Path) -> None:
    """The weights do not fit into the largest file that this pull may write."""
    engine.succeed("push", artifact, REPO)
    limited = ["bash", "-c", 'ulimit -f 100; trap "" XFSZ; exec "$@"', "bash", *command("pull", REPO, "-o", tmp_path / "pulled")]
    done = subprocess.run(limited, env=surroundings(hub), capture_output=True, text=True, check=False)
    assert done.returncode == TransferError.exit_code
    assert "hint: free some space" in done.stderr
    assert not (tmp_path / "pulled").exists()
    with pytest.raises(TransferError, match=r"are to come, and .* has room for"):
        _check_room(tmp_path, 10**18)


def test_what_this_machine_cannot_run_is_pulled_with_a_warning(engine: Engine, hub: HubServer, artifact: Path, tmp_path: Path) -> None:
    describe(artifact, toolchain=msgspec.structs.replace(load_manifest(artifact).toolchain, torch="1.0"), has_weights=False)
    engine.succeed("push", artifact, REPO)
    done = engine("pull", REPO, "-o", tmp_path / "pulled")
    assert done.returncode == 0
    assert "warning: this artifact was built for another machine" in done.stderr
    assert ["torch", "1.0"] in [line.split()[:2] for line in done.stderr.splitlines()]
    assert "engine pack DIR --weights-from CHECKPOINT -o NEW" in done.stderr
    assert contents(tmp_path / "pulled") == contents(artifact)


def test_neither_imports_torch(hub: HubServer, artifact: Path, tmp_path: Path) -> None:
    code = "import sys; from engine.cli import main; code = main(sys.argv[1:]); "
    code += "print('MODULES', *sys.modules, file=sys.stderr); sys.exit(code)"
    for line in (["push", str(artifact), REPO], ["pull", REPO, "-o", str(tmp_path / "pulled")]):
        done = subprocess.run([sys.executable, "-P", "-c", code, *line], env=surroundings(hub), capture_output=True, text=True, check=True)
        modules = set(done.stderr.partition("MODULES")[2].split())
        assert "huggingface_hub" in modules
        assert modules & {"torch", "transformers", "triton", "engine.compiler", "engine.kernels"} == set()


def test_without_the_hubs_library_the_extra_is_named(artifact: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['huggingface_hub'] = None; from engine.cli import main; sys.exit(main(sys.argv[1:]))"
    for line in (["push", str(artifact), REPO], ["pull", REPO, "-o", str(tmp_path / "pulled")]):
        done = subprocess.run([sys.executable, "-P", "-c", code, *line], capture_output=True, text=True, check=False)
        assert done.returncode == UsageError.exit_code
        assert "hint: pip install 'engine-llm[hub]'" in done.stderr


def test_other_tools_fetch_the_same(engine: Engine, hub: HubServer, artifact: Path, tmp_path: Path) -> None:
    """The hub's own client, which asks for headers and etags first."""
    engine.succeed("push", artifact, REPO)
    code = "import sys, huggingface_hub; huggingface_hub.snapshot_download(sys.argv[1], local_dir=sys.argv[2])"
    subprocess.run(
        [sys.executable, "-P", "-c", code, REPO, str(tmp_path / "plain")],
        env=surroundings(hub) | {"HF_HOME": str(tmp_path / "home")},
        check=True,
    )
    shutil.rmtree(tmp_path / "plain" / ".cache")  # the client's own
    (tmp_path / "plain" / ".gitattributes").unlink()  # the hub's own
    verify(tmp_path / "plain", load_manifest(tmp_path / "plain"))


@pytest.mark.parametrize("way", ['tar -C "$1" -c . | tar -C "$2" -x', 'cp -r "$1/." "$2"'], ids=["tar", "cp"])
def test_a_plain_copy_is_an_artifact(tiny_artifact: Path, tmp_path: Path, way: str) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    subprocess.run(["bash", "-euo", "pipefail", "-c", way, "bash", str(tiny_artifact), str(copy)], check=True)
    assert subprocess.run(command("verify", copy), capture_output=True, check=False).returncode == 0
    answer = ["generate", "--artifacts", copy, "--kv-memory", "16MB", "--max-tokens", "2", "--temperature", "0", "a b"]
    subprocess.run(command(*answer), check=True, capture_output=True)


def test_code_from_the_hub_and_weights_from_here(
    engine: Engine, hub: HubServer, tiny_artifact: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    engine.succeed("push", tiny_artifact, REPO)
    done = engine("pull", REPO, "-o", tmp_path / "tuned", "--weights-from", tiny_checkpoint, "--name", "tuned")
    assert done.returncode == 0, done.stderr
    assert not any(path.startswith(("weights/", "tokenizer/")) for path in hub.sent)
    ours, theirs = contents(tmp_path / "tuned"), contents(tiny_artifact)
    assert [name for name in theirs if theirs[name] != ours.get(name)] == [MANIFEST_NAME]
    assert load_manifest(tmp_path / "tuned").model.name == "tuned"
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]

"""`engine inspect` and `engine verify` on an artifact directory made by hand."""

import hashlib
import json
from pathlib import Path

import msgspec
import pytest
from artifact_stand_in import seal, write_artifact

from engine.artifacts import Manifest, PassReport, ProbePrompt, SegmentInfo, WeightInfo, load_manifest
from engine.artifacts.describe import human_bytes
from engine.cli import main

FILES = {"kernels/none.so": b"kernels", "segments/abc.so": b"segment code", "weights/0.safetensors": bytes(4096)}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    directory = write_artifact(tmp_path / "artifact")
    for name, content in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    manifest = load_manifest(directory)
    weight = WeightInfo(
        file="weights/0.safetensors", dtype="uint8", shape=[4, 1024], format="q4_1", sources=["layers.0.q.weight"], recipe=["pack"]
    )
    manifest = msgspec.structs.replace(
        manifest,
        segments=[SegmentInfo(key="abcdef0123456789ff", file="segments/abc.so", calls=30, nodes=57)],
        weights={"layers.0.q.weight": weight},
        fusion=[PassReport(name="eliminate_no_ops", matches=12, nodes_before=1000, nodes_after=988)],
        unfused={"aten.mul.Tensor": 4, "aten.add.Tensor": 2},
        probe=msgspec.structs.replace(
            manifest.probe, prompts=[ProbePrompt(tokens=[1, 2, 3], top_tokens=[7], top_logits=[1.5], logits_sha256="e" * 64)]
        ),
    )
    seal(directory, manifest)
    return directory


def test_inspect_shows_what_is_inside(artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["inspect", str(artifact)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for expected in (
        "echo",
        f"digest {load_manifest(artifact).digest}",
        "abcdef0123456789 57 30 12",
        "q4_1 1 4,096 4.0 KiB",
        "eliminate_no_ops 12 1,000 988",
        "Unfused",
        "aten.mul.Tensor 4",
        "Golden probe, recorded on the reference",
        "3 7 eeeeeeeeeeeeeeee",
        f"segments/abc.so 12 {hashlib.sha256(b'segment code').hexdigest()[:16]}",
    ):
        assert expected in lines


def test_inspect_lists_every_weight(artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["inspect", "--weights", str(artifact)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == ["Weights", "made from format shape bytes", "layers.0.q.weight q4_1 [4, 1024] 4,096"]


def test_inspect_as_json_is_the_manifest(artifact: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["inspect", str(artifact), "--json"]) == 0
    shown = capfdbinary.readouterr().out
    assert msgspec.json.decode(shown, type=Manifest) == load_manifest(artifact)
    assert json.loads(shown)["model"]["name"] == "echo"


def test_verify_reads_every_file(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(artifact)]) == 0
    manifest = load_manifest(artifact)
    size = sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file() and path.name != "manifest.json")
    assert capsys.readouterr().out == f"{artifact}: 6 files, {size:,} bytes, all intact\ndigest {manifest.digest}\n"


def test_verify_reports_all_that_is_wrong(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (artifact / "segments" / "abc.so").write_bytes(b"segment cod3")
    (artifact / "tokenizer" / "text.json").unlink()
    (artifact / "weights" / "0.safetensors").write_bytes(bytes(4095))
    (artifact / "weights" / "1\x1b[2J.safetensors").write_bytes(b"")
    (artifact / "link").symlink_to("/etc")
    assert main(["verify", str(artifact)]) == 6
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"error: {artifact} is not as it was built, 5 files are at fault:"
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == [
        "segments/abc.so is damaged",
        "tokenizer/text.json is missing",
        "weights/0.safetensors has 4,095 bytes, the manifest says 4,096",
        "link is not listed in the manifest",
        r"weights/1\x1b[2J.safetensors is not listed in the manifest",
    ]
    assert lines[-1].startswith("hint: never serve this copy")


@pytest.mark.parametrize("name", FILES)
def test_verify_notices_one_flipped_bit(artifact: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((artifact / name).read_bytes())
    content[-1] ^= 1
    (artifact / name).write_bytes(content)
    assert main(["verify", str(artifact)]) == 6
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{name} is damaged" in captured.err
    assert captured.err.splitlines()[-1].startswith("hint: ")


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_not_an_artifact(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main([command, str(tmp_path)]) == 6
    assert f"hint: this looks like a checkpoint; compile it first: engine build {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**20, "5.0 MiB"), (3 * 2**40, "3072.0 GiB")]
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text

"""Signing an artifact and asking for a signature: the right key, and every way in which it is not that."""

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from artifact_stand_in import edit_manifest, seal, write_artifact
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat, PublicFormat
from opened_files import opened_files

from engine.artifacts import load_manifest
from engine.artifacts.manifest import SIGNATURE_NAME
from engine.artifacts.signature import PREFIX
from engine.cli import main


class Keys:
    """PEM files: NAME.pem, and NAME.pub.pem."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        self.write("ours", ed25519.Ed25519PrivateKey.generate())
        self.write("theirs", ed25519.Ed25519PrivateKey.generate())
        self.write("curve", ec.generate_private_key(ec.SECP256R1()))
        self.write("encrypted", ed25519.Ed25519PrivateKey.generate(), b"secret")
        (directory / "text.pem").write_text("-----BEGIN NONSENSE-----\n")
        (directory / "text.pub.pem").write_bytes(bytes(range(256)))

    def write(self, name: str, key: PrivateKeyTypes, password: bytes | None = None) -> None:
        encryption = BestAvailableEncryption(password) if password else NoEncryption()
        self.private(name).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        self.public(name).write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def private(self, name: str) -> Path:
        return self._directory / f"{name}.pem"

    def public(self, name: str) -> Path:
        return self._directory / f"{name}.pub.pem"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "artifact")


@pytest.fixture
def signed(artifact: Path, keys: Keys) -> Path:
    assert main(["sign", str(artifact), "--key", str(keys.private("ours"))]) == 0
    return artifact


def verify(artifact: Path, key: Path) -> int:
    return main(["verify", str(artifact), "--key", str(key)])


def test_a_signed_artifact_verifies(signed: Path, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(signed, keys.public("ours")) == 0
    assert f"all intact, signed by the owner of {keys.public('ours')}" in capsys.readouterr().out
    assert main(["verify", str(signed)]) == 0
    assert SIGNATURE_NAME not in load_manifest(signed).files


def test_the_signature_does_not_change_the_digest_nor_what_is_listed(artifact: Path, keys: Keys) -> None:
    before = (artifact / "manifest.json").read_bytes()
    assert main(["sign", str(artifact), "--key", str(keys.private("ours"))]) == 0
    assert (artifact / "manifest.json").read_bytes() == before
    assert (artifact / SIGNATURE_NAME).stat().st_size == 64


def test_signing_again_replaces_the_signature(signed: Path, keys: Keys) -> None:
    assert main(["sign", str(signed), "--key", str(keys.private("theirs"))]) == 0
    assert verify(signed, keys.public("theirs")) == 0
    assert verify(signed, keys.public("ours")) == 6


def test_openssl_checks_the_same_signature(signed: Path, keys: Keys, tmp_path: Path) -> None:
    """By the lines in docs/integrity.md."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl")
    (tmp_path / "message").write_bytes(PREFIX + load_manifest(signed).digest.encode())
    for key, code in (("ours", 0), ("theirs", 1)):
        files = ["-inkey", str(keys.public(key)), "-in", str(tmp_path / "message"), "-sigfile", str(signed / SIGNATURE_NAME)]
        done = subprocess.run(["openssl", "pkeyutl", "-verify", "-pubin", "-rawin", *files], capture_output=True, check=False)
        assert done.returncode == code, done.stderr


def test_keys_that_openssl_makes(artifact: Path, tmp_path: Path) -> None:
    """By the lines in `engine sign --help`."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl")
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    assert main(["sign", str(artifact), "--key", str(private)]) == 0
    assert verify(artifact, public) == 0


def test_a_damaged_artifact_is_not_signed(artifact: Path, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    (artifact / "tokenizer" / "text.json").write_text("{}")
    assert main(["sign", str(artifact), "--key", str(keys.private("ours"))]) == 6
    assert "text.json has 2 bytes" in capsys.readouterr().err
    assert not (artifact / SIGNATURE_NAME).exists()


def test_a_signature_is_for_one_artifact(signed: Path, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    """Another that is whole, with the signature of this one."""
    manifest = load_manifest(signed)
    seal(signed, msgspec.structs.replace(manifest, model=msgspec.structs.replace(manifest.model, name="other")))
    assert main(["verify", str(signed)]) == 0
    assert verify(signed, keys.public("ours")) == 6
    assert "was not made for this artifact" in capsys.readouterr().err


def test_when_an_artifact_was_built_is_not_signed(signed: Path, keys: Keys) -> None:
    edit_manifest(signed, lambda content: content.update(created=5), reseal=False)
    assert verify(signed, keys.public("ours")) == 0


def test_a_signature_of_the_digest_alone_is_none(signed: Path, keys: Keys) -> None:
    """Who signs 64 hex digits for another purpose has not signed an artifact."""
    key = ed25519.Ed25519PrivateKey.generate()
    keys.write("careless", key)
    (signed / SIGNATURE_NAME).write_bytes(key.sign(load_manifest(signed).digest.encode()))
    assert verify(signed, keys.public("careless")) == 6


@pytest.mark.parametrize("content", [b"", bytes(63), bytes(64), bytes(1 << 20)])
def test_a_file_that_is_no_signature(signed: Path, keys: Keys, content: bytes) -> None:
    (signed / SIGNATURE_NAME).write_bytes(content)
    assert verify(signed, keys.public("ours")) == 6


def test_a_signature_that_lies_elsewhere(signed: Path, keys: Keys, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside = (signed / SIGNATURE_NAME).rename(tmp_path / "elsewhere")
    (signed / SIGNATURE_NAME).symlink_to(outside)
    assert verify(signed, keys.public("ours")) == 6
    assert "leads out of the artifact" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "code", "message"),
    [
        ("theirs.pub.pem", 6, "was not made for this artifact by the owner of"),
        ("curve.pub.pem", 2, "is not an Ed25519 key"),
        ("ours.pem", 2, "is a private key, and a public one is needed"),
        ("text.pub.pem", 2, "is not a PEM file with a public key"),
        ("text.pem", 2, "is not a PEM file with a public key"),
        ("nowhere.pem", 2, "cannot be read: No such file"),
        ("", 2, "cannot be read: Is a directory"),
    ],
)
def test_a_wrong_key_to_verify_with(
    signed: Path, keys: Keys, tmp_path: Path, key: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["verify", str(signed), "--key"], ["serve", "--artifacts", str(signed), "--port", "0", "--verify-key"]):
        assert main([*command, str(tmp_path / "keys" / key)]) == code
        error = capsys.readouterr().err
        assert message in error
        assert error.splitlines()[-1].startswith("hint: ")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("curve.pem", "is not an Ed25519 key"),
        ("encrypted.pem", "is encrypted"),
        ("ours.pub.pem", "is a public key, and a private one is needed"),
        ("text.pem", "is not a PEM file with a private key"),
        ("nowhere.pem", "cannot be read: No such file"),
    ],
)
def test_a_wrong_key_to_sign_with(
    artifact: Path, keys: Keys, tmp_path: Path, key: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sign", str(artifact), "--key", str(tmp_path / "keys" / key)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("hint: ")
    assert not (artifact / SIGNATURE_NAME).exists()


def test_nothing_of_an_unsigned_artifact_is_opened_by_serve(artifact: Path, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    """But its manifest."""
    with opened_files() as opened:
        assert main(["serve", "--artifacts", str(artifact), "--port", "0", "--verify-key", str(keys.public("ours"))]) == 6
    assert {path for path in opened if path.startswith(str(artifact))} == {str(artifact / "manifest.json")}
    error = capsys.readouterr().err
    assert error.startswith(f"error: {artifact} is not signed: it has no {SIGNATURE_NAME}\nhint: ")

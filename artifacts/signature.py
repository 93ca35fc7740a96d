"""Who vouches for an artifact: an Ed25519 signature of its digest, in a file beside the manifest.

What is signed is PREFIX and the digest in hex, so that a signature made for something else is
none here. The file holds the 64 bytes of the signature and nothing else: openssl can check it too.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArtifactError, UsageError
from .files import read_file
from .manifest import SIGNATURE_NAME

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_BYTES = 64
PREFIX = b"engine artifact v1\n"
_HOW_PRIVATE = "openssl genpkey -algorithm ed25519 -out private.pem makes one"
_HOW_PUBLIC = "openssl pkey -in private.pem -pubout -out public.pem makes one of a private key"


def signed_message(digest: str) -> bytes:
    """What is signed for an artifact of this digest."""
    return PREFIX + digest.encode()


def sign(directory: Path, digest: str, key: "Ed25519PrivateKey") -> Path:
    """Sign the artifact at `directory`, whose digest this is; the signature's file, which replaces one that was there.

    Raises ArtifactError if it cannot be written.
    """
    signature = key.sign(signed_message(digest))
    path = directory / SIGNATURE_NAME
    temporary = path.with_name(SIGNATURE_NAME + ".new")
    try:
        temporary.write_bytes(signature)
        temporary.replace(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}", hint="the signature lies beside the manifest") from error
    return path


def verify_signature(directory: Path, digest: str, key_file: Path) -> None:
    """Check that the artifact's signature was made for this digest by the private half of this key.

    key_file: a PEM with an Ed25519 public key. Raises UsageError for another one, and ArtifactError
    for an artifact that is not signed, or otherwise.
    """
    key = _public_key(key_file)
    from cryptography.exceptions import InvalidSignature

    try:
        signature = read_file(directory, SIGNATURE_NAME, most=SIGNATURE_BYTES)
    except FileNotFoundError:
        raise ArtifactError(
            f"{directory} is not signed: it has no {SIGNATURE_NAME}",
            hint="whoever built it signs it with: engine sign DIR --key private.pem",
        ) from None
    try:
        key.verify(signature, signed_message(digest))
    except InvalidSignature:
        raise ArtifactError(
            f"{directory / SIGNATURE_NAME} was not made for this artifact by the owner of {key_file}",
            hint="this is another artifact than the one signed, or another key than that of who signed it: do not use it before you know",
        ) from None


def read_private_key(file: Path) -> "Ed25519PrivateKey":
    """The Ed25519 key in a PEM file. Raises UsageError for anything else, an encrypted one too."""
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(file)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise UsageError(f"the key {file} is encrypted", hint=f"decrypt it first: openssl pkey -in {file} -out decrypted.pem") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _not_a_key(file, data, "private", _HOW_PRIVATE) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _of_another_type(file, _HOW_PRIVATE)
    return key


def _public_key(file: Path) -> "Ed25519PublicKey":
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read(file)
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise _not_a_key(file, data, "public", _HOW_PUBLIC) from None
    if not isinstance(key, Ed25519PublicKey):
        raise _of_another_type(file, _HOW_PRIVATE)
    return key


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError("signatures need the package cryptography", hint="pip install 'engine-llm[sign]'") from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"the key {file} cannot be read: {error.strerror}", hint="give the path of a PEM file") from None


def _not_a_key(file: Path, data: bytes, wanted: str, how: str) -> UsageError:
    found = next((kind for kind in ("private", "public") if f"{kind.upper()} KEY".encode() in data), None)
    if found is not None and found != wanted:
        return UsageError(f"{file} is a {found} key, and a {wanted} one is needed", hint=how)
    return UsageError(f"{file} is not a PEM file with a {wanted} key", hint=how)


def _of_another_type(file: Path, how: str) -> UsageError:
    return UsageError(f"the key {file} is not an Ed25519 key", hint=how)

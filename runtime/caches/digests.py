"""Names of what a block of a cache holds, by which equal prefixes find each other."""

from hashlib import blake2b

ROOT_DIGEST = b""
"""Of sequences whose keys and values depend on nothing but their tokens."""


def block_digest(parent: bytes, tokens: bytes) -> bytes:
    """Name of a full block's content: its tokens (int32 bytes) and, through `parent`, all before them.

    128 bits of a cryptographic hash: nobody can write a prompt that is mistaken for another one.
    """
    return blake2b(parent + tokens, digest_size=16).digest()

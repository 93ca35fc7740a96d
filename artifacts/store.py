"""The store: compiled segments and kernel libraries by key, shared by every build of a user.

An entry is one immutable file. It is written beside its final place and renamed into it, so a
reader sees a whole file or none, and a killed writer leaves only a temporary one. Next to each
entry lies its SHA-256; an entry that does not match it is treated as absent and replaced.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from ..errors import BuildError


def key_of(*ingredients: str) -> str:
    """The key of a compiled thing: SHA-256 over its ingredients, each with its length, 32 hex digits."""
    digest = hashlib.sha256()
    for ingredient in ingredients:
        data = ingredient.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


class Store:
    """A directory of entries `<key><suffix>`. Raises BuildError where the disk does not cooperate."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BuildError(
                f"the store {directory} cannot be created: {error.strerror}", hint="choose another with --store DIR"
            ) from error

    def find(self, key: str, suffix: str) -> Path | None:
        """The entry's file, if there is a whole one."""
        path = self.directory / f"{key}{suffix}"
        try:
            expected = path.with_suffix(suffix + ".sha256").read_text()
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None
        return path if actual == expected else None

    def add(self, key: str, suffix: str, source: Path) -> Path:
        """Copy `source` in as the entry for `key`, atomically. Returns the entry's file."""
        path = self.directory / f"{key}{suffix}"
        try:
            with tempfile.TemporaryDirectory(dir=self.directory, prefix=".adding-") as scratch:
                copy = Path(scratch) / "entry"
                shutil.copyfile(source, copy)
                with copy.open("rb+") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    os.fsync(file.fileno())
                copied_digest = Path(scratch) / "digest"
                copied_digest.write_text(digest)
                copy.replace(path)
                copied_digest.replace(path.with_suffix(suffix + ".sha256"))
        except OSError as error:
            raise BuildError(
                f"the store {self.directory} cannot be written: {error.strerror}",
                hint="free some space, or choose another with --store DIR",
            ) from error
        return path

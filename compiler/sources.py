"""Files of this package as ingredients of keys: name -> digest, so that a miss can name the file that differs."""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from ..artifacts.store.keys import digest_of

PACKAGE = Path(__file__).parent.parent


def sources(*names: str) -> Mapping[str, str]:
    """Digests of files, and of all Python files under folders, named relative to the package."""
    return _digests(PACKAGE, names)


def source_names(names: Iterable[str], package: Path = PACKAGE) -> list[str]:
    """The files that `names`, files and folders, stand for."""
    files: set[Path] = set()
    for name in names:
        path = package / name
        files |= set(path.rglob("*.py")) if path.is_dir() else {path}
    return sorted(file.relative_to(package).as_posix() for file in files)


@cache
def _digests(package: Path, names: tuple[str, ...]) -> Mapping[str, str]:
    return MappingProxyType({name: digest_of((package / name).read_bytes()) for name in source_names(names, package)})

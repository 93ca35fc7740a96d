"""JSON files of an artifact, read into strict types."""

from pathlib import Path
from typing import TypeVar

import msgspec

from ..errors import ArtifactError

_T = TypeVar("_T")


def read_json(path: Path, kind: type[_T], what: str) -> _T:
    """The file's content. Raises ArtifactError, which calls it `what`, for one that cannot be read or is something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, UnicodeDecodeError, RecursionError, msgspec.MsgspecError) as error:
        raise ArtifactError(f"{path} is not a valid {what}: {error}", hint="build or copy the artifact again") from None

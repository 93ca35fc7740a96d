"""Reading a checkpoint's JSON files."""

import json
from pathlib import Path
from typing import Any

from ...errors import CheckpointError


def read_json(path: Path, *, hint: str) -> dict[str, Any]:
    """An object from a JSON file. Raises CheckpointError, with `hint` if there is no such file, unless it holds one."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}", hint=hint) from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}", hint="look at its permissions and at the disk"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}", hint="the file is damaged; fetch it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path} must hold a JSON object, not {type(values).__name__}", hint="the file was edited or damaged; fetch it again"
        )
    return values


def read_json_if_there(path: Path) -> dict[str, Any]:
    """Like `read_json`, but an absent file reads as an empty object."""
    return read_json(path, hint="") if path.exists() else {}

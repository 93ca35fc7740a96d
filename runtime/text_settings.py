"""What the runtime must know of an artifact's tokenizer: which tokens end a text."""

from pathlib import Path

import msgspec

from ..errors import ArtifactError

TEXT_SETTINGS = "tokenizer/text.json"


class _TextSettings(msgspec.Struct, frozen=True):
    eos_token_ids: list[int]


def read_eos_token_ids(directory: Path) -> list[int]:
    """`eos_token_ids` of DIR/tokenizer/text.json. Raises ArtifactError if the file is missing or damaged."""
    path = directory / TEXT_SETTINGS
    try:
        return msgspec.json.decode(path.read_bytes(), type=_TextSettings).eos_token_ids
    except (OSError, msgspec.DecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", hint="the artifact is damaged; build or copy it again") from None

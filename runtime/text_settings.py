"""What the runtime must know of an artifact's tokenizer: which tokens end a text."""

from pathlib import Path

import msgspec

from ..artifacts.json_file import read_json

TEXT_SETTINGS = "tokenizer/text.json"


class _TextSettings(msgspec.Struct, frozen=True):
    eos_token_ids: list[int]


def read_eos_token_ids(directory: Path) -> list[int]:
    """`eos_token_ids` of DIR/tokenizer/text.json. Raises ArtifactError if the file is missing or damaged."""
    return read_json(directory / TEXT_SETTINGS, _TextSettings, "description of a tokenizer").eos_token_ids

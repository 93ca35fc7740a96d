"""How a Hugging Face directory says that tokens should be chosen where nobody says otherwise."""

import math
from pathlib import Path

from ..errors import CheckpointError
from .settings import Settings
from .storage.json_file import read_json_if_there

GENERATION_CONFIG = "generation_config.json"
_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (math.ulp(0.0), 10.0),
    "max_new_tokens": (1, 2**31 - 1),
}
"""The least and the most of each; whole numbers where these are."""


def sampling_defaults(directory: Path) -> dict[str, float]:
    """Those of generation_config.json, by its names. Raises CheckpointError for values that mean nothing."""
    settings = Settings(read_json_if_there(directory / GENERATION_CONFIG), GENERATION_CONFIG)
    found: dict[str, float] = {}
    for name, (least, most) in _RANGES.items():
        if name not in settings:
            continue
        value = settings.integer(name, maximum=2**31 - 1) if isinstance(most, int) else settings.number(name)
        if not least <= value <= most:
            raise CheckpointError(
                f"{GENERATION_CONFIG}: {name} is {value}; it must be between {least:g} and {most:g}",
                hint=f"correct it, or take it out of {directory / GENERATION_CONFIG}",
            )
        found[name] = value
    return found

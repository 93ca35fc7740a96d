"""Where what was compiled lies."""

from dataclasses import dataclass
from pathlib import Path

from .option import option
from .values import DIRECTORY


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Which store."""

    store: Path | None = option(
        None,
        "the store of what was compiled: shared by builds, it spares them compiling (default: $ENGINE_STORE, else one per user)",
        **DIRECTORY,
    )

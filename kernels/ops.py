"""How our operators come into torch's dispatcher.

Nothing happens at import. `define()` makes the schemas known and `register_fakes()` adds shape
functions for tracing (build), `load(path)` adds the native CPU implementations from a kernel
library (tests, benchmarks). Serving knows no schemas: it loads the library's code (native.py), and
segments call it by symbol.
"""

from pathlib import Path

import torch

from .fakes import fakes
from .native import load_code
from .schemas import SCHEMAS

NAMESPACE = "engine"


class _State:
    """What this process has registered. Torch forgets an operator when its Library is collected."""

    schemas: torch.library.Library | None = None
    fakes: bool = False


def define() -> None:
    """Make the schemas known to torch. Calling it again does nothing."""
    if _State.schemas is not None:
        return
    library = torch.library.Library(NAMESPACE, "DEF")
    for schema in SCHEMAS:
        # Strides at run time are those seen while tracing: rows may be slices of a wider tensor.
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
    _State.schemas = library


def load(path: Path) -> None:
    """Define the operators and register the CPU implementations in the kernel library at `path`.

    Raises as `native.load_code` does.
    """
    define()
    load_code(path)


def register_fakes() -> None:
    """Define the operators and register their shape functions, so that they can be traced. Calling it again does nothing."""
    define()
    if _State.fakes:
        return
    for name, fake in fakes().items():
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_State.schemas)
    _State.fakes = True

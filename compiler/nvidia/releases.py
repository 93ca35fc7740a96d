"""The releases of torch and Triton whose private parts are as device.py takes them. Imports next to nothing: every build asks."""

import re
from importlib.metadata import PackageNotFoundError, version

import torch

from ...errors import BuildError

HOLDS_FOR = {"torch": ("2.11", "2.12", "2.13"), "triton": ("3.6", "3.7")}
"""Releases whose private parts are as device.py takes them."""


def triton_version() -> str:
    """Triton's version. Raises BuildError where it is not installed."""
    try:
        return version("triton")
    except PackageNotFoundError:
        raise BuildError("Triton is not installed", hint="building for NVIDIA needs it: pip install 'engine-llm[nvidia]'") from None


def check_versions() -> None:
    """Raises BuildError if torch or Triton is not one that this module holds for."""
    for name, found in (("torch", torch.__version__), ("triton", triton_version())):
        release = re.match(r"\d+\.\d+", found)
        if release is None or release[0] not in HOLDS_FOR[name]:
            raise BuildError(
                f"building for NVIDIA was not written for {name} {found}", hint=f"install one of {name} {', '.join(HOLDS_FOR[name])}"
            )

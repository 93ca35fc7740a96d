"""A piece of the GPU's memory, and how pieces are laid side by side."""

from typing import NamedTuple

ALIGNMENT = 256
"""What the driver's own allocations have, so that no kernel can tell the difference."""


class Region(NamedTuple):
    """Memory of the GPU."""

    address: int
    nbytes: int


def align(nbytes: int) -> int:
    """So many bytes, or what is wanted of them until the next piece may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT

"""The C library's heap, asked to be small. Where it is not glibc's, which has these functions, nothing happens."""

import ctypes
import sys
from collections.abc import Callable

_M_ARENA_MAX = -8
"""Of glibc's malloc.h."""


def use_one_arena() -> None:
    """All threads that begin from now on allocate from one heap.

    glibc gives each a heap of its own, and what a step's results took in one is not used again by another: 50 MB
    for a model of 0.5B. The worker has one thread that allocates much.
    """
    if (mallopt := _function("mallopt")) is not None:
        mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return freed memory to the system: a tokenizer leaves half as much behind from loading it as it keeps. Takes 10 ms."""
    if (malloc_trim := _function("malloc_trim")) is not None:
        malloc_trim(ctypes.c_size_t(0))


def _function(name: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)

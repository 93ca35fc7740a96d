"""What fits blocks to weights at a build: kernels/host/quantize.cpp, compiled once and kept in the store.

Where there is no compiler, or the machine cannot run what it makes, the specification in PyTorch gives the same bytes, later.
"""

import ctypes
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..artifacts import this_machine_flags
from ..artifacts.store.keys import Identity, identity
from ..artifacts.store.store import Store
from ..artifacts.target import CPU_LEVELS
from ..errors import BuildError
from ..kernels import library
from ..kernels.linear.blocks import GROUP
from ..kernels.linear.quantize import Fit, fit
from .lower_cpu import LIBRARY_SOURCES, LibraryRecipe
from .sources import PACKAGE, sources
from .toolchain import versions

LEVEL = "x86-64-v3"
_FLAGS = (f"-march={LEVEL}",)
SOURCE = "kernels/host/quantize.cpp"
_ROWS = 16
"""Rows that the library takes together, at most."""


@dataclass(frozen=True, kw_only=True)
class Quantizing:
    """How values become blocks. importance: of the input channels of every parameter that was calibrated, [K] float32."""

    importance: Mapping[str, Tensor] = field(default_factory=dict)
    fit: Fit = fit


PLAIN = Quantizing()
"""All channels alike, by the specification."""


def best_fit(store: Store) -> tuple[Fit, str]:
    """What is fastest here, and why it is not the compiled one, if it is not."""
    if not this_machine_flags() >= set(CPU_LEVELS[LEVEL]):
        return fit, f"in PyTorch, slowly: this machine is no {LEVEL}"
    try:
        wanted = quantizer_identity()
    except BuildError as error:
        return fit, f"in PyTorch, slowly: {str(error).splitlines()[0]}"
    found = store.find(wanted)
    return NativeFit(found.contents[_name(wanted)] if found is not None else _compiled(wanted, store)), ""


def quantizer_identity() -> Identity:
    """Raises BuildError where there is no C++ compiler."""
    files = sources(*LIBRARY_SOURCES, SOURCE, "kernels/cpu/simd.h")
    return identity("quantizer", LibraryRecipe(flags=(*library.FLAGS, *_FLAGS), toolchain=versions(), sources=files))


def _name(wanted: Identity) -> str:
    return f"{wanted.key}.so"


def _compiled(wanted: Identity, store: Store) -> bytes:
    with tempfile.TemporaryDirectory(prefix="engine-quantizer-") as scratch:
        output = Path(scratch) / _name(wanted)
        library.compile_sources([PACKAGE / SOURCE], _FLAGS, output)
        content = output.read_bytes()
    store.add(wanted, {_name(wanted): content})
    return content


class NativeFit:
    """`kernels.linear.quantize.fit` by the library with this content, on all processors."""

    def __init__(self, content: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="engine-quantizer-") as scratch:
            path = Path(scratch) / "quantizer.so"
            path.write_bytes(content)
            self._quantize = ctypes.CDLL(str(path)).engine_quantize
        pointer, count, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        self._quantize.argtypes, self._quantize.restype = [pointer, pointer, count, count, small, pointer], None

    def __call__(self, x: Tensor, importance: Tensor, bits: int) -> Tensor:
        rows, columns = x.shape
        x, importance = x.contiguous(), importance.contiguous()
        out = torch.empty(rows, 8 + columns // GROUP * (2 + GROUP), dtype=torch.uint8)
        threads = len(os.sched_getaffinity(0))
        share = max(_ROWS, -(-rows // (4 * threads) // _ROWS) * _ROWS)

        def run(first: int) -> None:
            count = min(share, rows - first)
            self._quantize(x[first:].data_ptr(), importance.data_ptr(), count, columns, bits, out[first:].data_ptr())

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, range(0, rows, share)))
        return out

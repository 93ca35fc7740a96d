"""A tensor as native code takes it: memory, and what is in it. numpy knows no bfloat16."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..artifacts.manifest import DTYPE_BYTES


class Memory(NamedTuple):
    """A contiguous tensor in `data`. dtype: as in a manifest."""

    data: NDArray[np.uint8]
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

"""Tokens that the executor draws itself, where the logits are: what it has to be told before the step.

Planned ahead like the rest of a step: a random number depends on nothing but the request's seed and
the token's index.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...protocol import SamplingParams
from ..scheduler import Chunk
from .philox import uniform

_uniform = lru_cache(maxsize=1024)(uniform)
"""A step that is planned anew wants the same numbers again."""
_HOTTEST = 1e30
"""Above this temperature, all tokens are equally likely in float32; infinity would make NaN of logits of -inf."""
_LARGEST_INT32 = 2**31 - 1
_UNIFORM_BITS = 24
"""So that no number in [0, 1) becomes 1 in float32."""


class Draws(NamedTuple):
    """Rows [D] of a step's logits whose token is drawn, with the parameters of each [D]: top_k int32, the others float32.

    temperature > 0. uniform: where in [0, 1) the draw falls.
    """

    rows: NDArray[np.intp]
    temperature: NDArray[np.float32]
    top_k: NDArray[np.int32]
    top_p: NDArray[np.float32]
    min_p: NDArray[np.float32]
    uniform: NDArray[np.float32]


def plan_draws(chunks: Sequence[Chunk]) -> Draws | None:
    """For the step of these chunks: the rows of sequences that ask for nothing else. None if there are none.

    A sequence is among them or not by its own parameters and the index of the token, whatever is beside it.
    """
    found = []
    rows = 0
    for sequence, start, size, wanted, chooses in chunks:
        rows += wanted
        index = start + size - sequence.num_prompt
        if chooses and sequence.sampling.is_plain_draw(index):
            found.append((rows - 1, *_numbers(sequence.params, _uniform(sequence.sampling.seed, index))))
    return _as_arrays(found) if found else None


def _numbers(params: SamplingParams, u: float) -> tuple[float, int, float, float, float]:
    return min(params.temperature, _HOTTEST), min(params.top_k, _LARGEST_INT32), params.top_p, params.min_p, _rounded_down(u)


def _rounded_down(u: float) -> float:
    return int(u * 2**_UNIFORM_BITS) * 2.0**-_UNIFORM_BITS


def _as_arrays(found: Sequence[tuple[int, float, int, float, float, float]]) -> Draws:
    rows, temperature, top_k, top_p, min_p, uniforms = zip(*found, strict=True)
    return Draws(
        rows=np.array(rows, np.intp),
        temperature=np.array(temperature, np.float32),
        top_k=np.array(top_k, np.int32),
        top_p=np.array(top_p, np.float32),
        min_p=np.array(min_p, np.float32),
        uniform=np.array(uniforms, np.float32),
    )

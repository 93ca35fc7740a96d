"""Choosing a token at random from one row of logits. All functions look at one row only.

z float32 holds (logit - largest logit) / temperature of a whole row or of candidates, so its
largest value is 0 and exp(z) are probabilities up to a factor. The filters all keep a prefix of
the same order, most likely first and lower id first among equals, so that the shortest prefix decides.
"""

import math

import numpy as np
from numpy.typing import NDArray

_DEPTH = 64
"""Rows are seen as [64, V / 64] for sums and maxima in two levels, which numpy vectorizes best along the short axis."""


def sample_row(row: NDArray[np.float32], u: float, *, temperature: float, top_k: int, top_p: float, min_p: float) -> int:
    """The token of a row of logits [V] that u in [0, 1) falls on after min-p and top-k, then top-p of what is left.

    min_p keeps tokens at least min_p times as likely as the most likely one; top_k exactly k tokens;
    top_p the shortest prefix whose probability reaches top_p (one token at least).
    """
    if 0 < top_k < len(row):
        ids = _largest(row, top_k)
        z = _scaled(row[ids], temperature)
        if min_p > 0.0:
            keep = int(np.count_nonzero(z >= math.log(min_p)))
            z, ids = z[:keep], ids[:keep]
        return _draw_prefix(z, ids, u, top_p, None)
    z = _scaled(row, temperature)
    if min_p > 0.0:
        ids = np.flatnonzero(z >= math.log(min_p))
        if top_p == 1.0:
            return _pick(ids, np.cumsum(np.exp(z[ids], dtype=np.float64)), u)
        ids = _sorted(z, ids)
        return _draw_prefix(z[ids], ids, u, top_p, None)
    if top_p < 1.0:
        total = float(np.exp(z).sum())
        ids = _mass_at_least(z, top_p, total)
        return _draw_prefix(z[ids], ids, u, top_p, total)
    return _draw_any(z, u)


def largest(row: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Ids of the `count` largest values of a row [V], largest first, lower id first among equals."""
    if count == 0:
        return np.empty(0, np.intp)
    return _largest(row, min(count, len(row)))


def _scaled(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    z: NDArray[np.float32] = (logits - logits.max()) / np.float32(temperature)
    return z


def _largest(row: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    # the count-th largest of the maxima of disjoint groups is a lower bound of the count-th largest value
    even = len(row) // _DEPTH * _DEPTH
    maxima = np.concatenate([row[:even].reshape(_DEPTH, -1).max(axis=0), row[even:]])
    values = maxima if count <= len(maxima) else row
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    return _sorted(row, np.flatnonzero(row >= threshold))[:count]


def _sorted(row: NDArray[np.float32], ids: NDArray[np.intp]) -> NDArray[np.intp]:
    """ids by falling value, lower id first among equals: one sort of integers made of both, 10 times as fast as argsort."""
    bits = (row[ids] + np.float32(0)).view(np.int32)  # adding 0 makes -0.0 equal to 0.0
    rising = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)  # integers in the order of the floats
    keys = (-rising << 32) + ids
    keys.sort()
    return keys & 0xFFFFFFFF


def _mass_at_least(z: NDArray[np.float32], top_p: float, total: float) -> NDArray[np.intp]:
    """Sorted ids of the most likely tokens, enough for probability top_p, without sorting the whole row."""
    # Tokens less likely than (1 - top_p) / V together weigh less than 1 - top_p: the rest suffices,
    # whatever the row. Half of that is the floor, for rounding; a higher guess is tried first.
    floor = 0.5 * (1.0 - top_p) * total / len(z)
    weight = min(1.0, 64.0 * floor)  # 1 is the most likely token's
    while True:
        ids = np.flatnonzero(z >= math.log(weight)) if weight > 0.0 else np.arange(len(z))
        if weight <= floor or float(np.exp(z[ids], dtype=np.float64).sum()) >= top_p * total:
            return _sorted(z, ids)
        weight = max(floor, weight / 8.0)


def _draw_prefix(z: NDArray[np.float32], ids: NDArray[np.intp], u: float, top_p: float, total: float | None) -> int:
    """Draw from sorted candidates. total: sum of exp(z) that top_p refers to, None for that of the candidates."""
    cumulative = np.cumsum(np.exp(z, dtype=np.float64))
    keep = len(ids)
    if top_p < 1.0:
        target = top_p * (float(cumulative[-1]) if total is None else total)
        keep = min(keep, int(np.searchsorted(cumulative, target, side="left")) + 1)
    return _pick(ids, cumulative[:keep], u)


def _pick(ids: NDArray[np.intp], cumulative: NDArray[np.float64], u: float) -> int:
    total = cumulative[-1]
    at = int(np.searchsorted(cumulative, u * total, side="right"))
    # rounding may take u to 1: then the last one that weighs anything
    return int(ids[at if at < len(cumulative) else int(np.searchsorted(cumulative, total, side="left"))])


def _draw_any(z: NDArray[np.float32], u: float) -> int:
    """Draw from the whole row in two levels: a running sum over columns, then one within the column."""
    size = len(z)
    width = -(-size // _DEPTH)
    weights = np.zeros(_DEPTH * width, np.float32)
    np.exp(z, out=weights[:size])
    columns = weights.reshape(_DEPTH, width)
    cumulative = np.cumsum(columns.sum(axis=0), dtype=np.float64)
    target = u * cumulative[-1]
    column = min(int(np.searchsorted(cumulative, target, side="right")), width - 1)
    before = float(cumulative[column - 1]) if column else 0.0
    inner = np.cumsum(columns[:, column], dtype=np.float64)
    fraction = (target - before) / (float(cumulative[column]) - before)
    depth = int(np.searchsorted(inner, fraction * inner[-1], side="right"))
    if depth == _DEPTH:  # rounding took the fraction to 1
        depth = int(np.flatnonzero(columns[:, column])[-1])
    return depth * width + column

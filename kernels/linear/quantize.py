"""From float weights to blocks: what `--quantize int8`, `int6`, `int5` and `int4` do.

q8_0 takes its scale from the largest value. In the others (i4_g32 and its like) value = d * code + m, and d and m of 32 weights are
those that lose least, the square of every weight's error counted with the importance of its input channel:

1. of ranges that leave out up to `STEPS - 1` steps of 1 / 24 of the whole at either end, `MOST_STEPS` together, the best;
2. `REFITS` times, what least squares gives for the codes at hand, and with it new codes; kept where it is better.

m is 0 or less. Then d and -m become integers of eight bits times those of the row: a 255th of the largest, of so few bits that the
products are exact. Of the nearest integers and those beside them, the pair that loses least is taken.

Everything is float32 and each operation rounded on its own, with sums over weights in their order. So the result is the same bytes on
every machine; kernels/host/quantize.cpp computes it fast, and `fit` here is its specification.

Legend: N rows, K inputs, B groups of 32 along K, S weights of a group.
"""

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from .blocks import FORMATS, GROUP

STEPS, MOST_STEPS, STEP = 6, 7, 1 / 24
"""Steps by which either end of a range is drawn in, and both together; a step is this part of the whole range."""
REFITS = 3

STEPS_OF_ROW = 255
"""Integers that d and m of a group may be, beside 0."""

Numbers = tuple[Tensor, Tensor]
"""d and m, [N, B]."""
Fit = Callable[[Tensor, Tensor, int], Tensor]
"""As `fit`."""


def fit(x: Tensor, importance: Tensor, bits: int) -> Tensor:
    """x [N, K] and importance [K] float32, K a multiple of 32 -> uint8 [N, 8 + 2 B + K] as stored_blocks.py has i4_g32, codes of `bits`."""
    return _fit(x.unflatten(1, (-1, GROUP)), importance.unflatten(0, (-1, GROUP)), float((1 << bits) - 1))


def _fit(x: Tensor, importance: Tensor, top: float) -> Tensor:
    d, m = _improved(x, importance, _clipped(x, importance, top), top)
    row_d, row_m = (_coarse(largest / STEPS_OF_ROW) for largest in (d.amax(1, keepdim=True), (0 - m).amax(1, keepdim=True)))
    best = nearest = _nearest(d, row_d), _nearest(0 - m, row_m)
    least = _error(x, importance, *_times(row_d, row_m, best), top)
    for beside_d, beside_m in product((-1, 0, 1), repeat=2):
        tried = (nearest[0] + beside_d).clamp(0, STEPS_OF_ROW), (nearest[1] + beside_m).clamp(0, STEPS_OF_ROW)
        error = _error(x, importance, *_times(row_d, row_m, tried), top)
        best, least = _chosen(error < least, tried, best), torch.where(error < least, error, least)
    codes = _codes(x, *_times(row_d, row_m, best), top).flatten(1)
    head = torch.cat((row_d, row_m), dim=1).view(torch.uint8)
    return torch.cat((head, *(part.to(torch.uint8) for part in (*best, codes))), dim=1)


def _times(row_d: Tensor, row_m: Tensor, integers: Numbers) -> Numbers:
    return row_d * integers[0], -(row_m * integers[1])


def _allowed(d: Tensor, m: Tensor) -> Numbers:
    return d.clamp(min=0), m.clamp(max=0)


def _coarse(number: Tensor) -> Tensor:
    """Rounded to 16 bits, so that its products with integers of eight bits are exact."""
    bits = number.view(torch.int32)
    return (bits + 0x7F + (bits >> 8 & 1) & ~0xFF).view(torch.float32)


def _nearest(number: Tensor, step: Tensor) -> Tensor:
    return torch.where(step == 0, 0, number / step).round().clamp(0, STEPS_OF_ROW)


def quantize(format: str, weight: Tensor, importance: Tensor | None = None, fit: Fit = fit) -> Tensor:
    """Float [N, K] -> q8_0, or i4_g32 and its like: uint8 [N, bytes] as stored_blocks.py has them; K is padded with zeros.

    importance [K]: of every input channel, by default all alike. Raises ValueError if a value is not finite or a scale exceeds what
    float16 holds.
    """
    x = functional.pad(weight.float(), (0, -weight.shape[1] % GROUP))
    if format == "q8_0":
        return _symmetric(x.unflatten(1, (-1, GROUP)))
    assert FORMATS[format].of_rows, format
    if not bool(x.isfinite().all()):
        raise ValueError(f"the weight has values that {format} cannot hold")
    counts = torch.ones(weight.shape[1]) if importance is None else importance.float()
    return fit(x.contiguous(), functional.pad(counts, (0, x.shape[1] - counts.numel())), FORMATS[format].bits)


def _symmetric(x: Tensor) -> Tensor:
    """Blocks of q8_0."""
    d = (x.abs().amax(2, keepdim=True) / 127).half()
    if not bool(d.isfinite().all()):
        raise ValueError("the weight has values that q8_0 cannot hold")
    codes = torch.where(d == 0, 0, x / d.float()).round().clamp(-127, 127).to(torch.int8)
    return torch.cat((d.view(torch.uint8), codes.view(torch.uint8)), dim=2).flatten(1)


def _clipped(x: Tensor, importance: Tensor, top: float) -> Numbers:
    """The best d and m [N, B] of those ranges that leave out a part at either end. The whole one holds 0."""
    low, high = x.amin(2).clamp(max=0), x.amax(2)
    best = (high - low) / top, low
    least = _error(x, importance, *best, top)
    for below, above in _ends():
        m = low + (high - low) * (below * STEP)
        tried = (high - (high - low) * (above * STEP) - m) / top, m
        best, least = _better(x, importance, tried, best, least, top)
    return best


def _ends() -> Iterator[tuple[int, int]]:
    return ((below, above) for below in range(STEPS) for above in range(STEPS) if below + above <= MOST_STEPS)


def _improved(x: Tensor, importance: Tensor, found: Numbers, top: float) -> Numbers:
    best = _allowed(*found)
    least = _error(x, importance, *best, top)
    for _ in range(REFITS):
        best, least = _better(x, importance, _allowed(*_refitted(x, importance, *best, top)), best, least, top)
    return best


def _better(x: Tensor, importance: Tensor, tried: Numbers, best: Numbers, least: Tensor, top: float) -> tuple[Numbers, Tensor]:
    error = _error(x, importance, *tried, top)
    better = error < least
    return _chosen(better, tried, best), torch.where(better, error, least)


def _chosen(which: Tensor, yes: Numbers, no: Numbers) -> Numbers:
    return torch.where(which, yes[0], no[0]), torch.where(which, yes[1], no[1])


def _refitted(x: Tensor, importance: Tensor, d: Tensor, m: Tensor, top: float) -> Numbers:
    """What weighted least squares gives for the codes of d and m; these where the codes are all alike."""
    codes, off = _codes(x, d, m, top), x - m[:, :, None]
    weighted = codes * importance
    weights = _sum(importance)
    first, second, sums, products = _sum(weighted), _sum(weighted * codes), _sum(off * importance), _sum(weighted * off)
    determinant = weights * second - first * first
    solvable = determinant > 0
    fitted_d, shift = (weights * products - first * sums) / determinant, (second * sums - first * products) / determinant
    return torch.where(solvable, fitted_d, d), torch.where(solvable, m + shift, m)


def _codes(x: Tensor, d: Tensor, m: Tensor, top: float) -> Tensor:
    inverse = torch.where(d != 0, 1 / d, 0)
    return ((x - m[:, :, None]) * inverse[:, :, None]).clamp(0, top).round()


def _error(x: Tensor, importance: Tensor, d: Tensor, m: Tensor, top: float) -> Tensor:
    """Of every block, [N, B]."""
    off = _codes(x, d, m, top) * d[:, :, None] - (x - m[:, :, None])
    return _sum(off * off * importance)


def _sum(values: Tensor) -> Tensor:
    """[..., S] -> [...], one after another."""
    return reduce(torch.add, values.unbind(-1))

"""From float weights to blocks: what `--quantize int8`, `int6`, `int5` and `int4` do.

Formats of a scale alone (q8_0, q4_0) take it from the largest value. In those with a minimum, value = d * code + m, and a block's d and
m are those that lose least, the square of every weight's error counted with the importance of its input channel:

1. of ranges that leave out up to `STEPS - 1` steps of 1 / 24 of the whole at either end, `MOST_STEPS` together, the best;
2. d and m rounded to float16, as they are stored;
3. `REFITS` times, what least squares gives for the codes at hand, rounded, and with it new codes; kept where it is better.

Everything is float32 and each operation rounded on its own, with sums over a block's weights in their order. So the result is the same
bytes on every machine; kernels/host/quantize.cpp computes it fast, and `fit` here is its specification.

Legend: N rows, K inputs, B blocks along K, S weights of a block.
"""

from collections.abc import Callable, Iterator
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from .blocks import FORMATS, GROUP

STEPS, MOST_STEPS, STEP = 6, 7, 1 / 24
"""Steps by which either end of a range is drawn in, and both together; a step is this part of the whole range."""
REFITS = 3

Fit = Callable[[Tensor, Tensor, int, int], Tensor]
"""As `fit`."""


def fit(x: Tensor, importance: Tensor, bits: int, size: int) -> Tensor:
    """x [N, K] and importance [K] float32, K a multiple of `size` -> uint8 [N, B, 4 + size]: d and m in float16, and codes of `bits`."""
    x_NBS = x.unflatten(1, (-1, size))
    importance_BS = importance.unflatten(0, (-1, size))
    top = float((1 << bits) - 1)
    d, m = _improved(x_NBS, importance_BS, _clipped(x_NBS, importance_BS, top), top)
    codes = _codes(x_NBS, d, m, top).to(torch.uint8)
    numbers = torch.stack((d, m), dim=2).half()
    return torch.cat((numbers.view(torch.uint8), codes), dim=2)


def quantize(format: str, weight: Tensor, importance: Tensor | None = None, fit: Fit = fit) -> Tensor:
    """Float [N, K] -> uint8 [N, B * bytes of a block] as stored_blocks.py has them; K is padded with zeros.

    importance [K]: of every input channel, by default all alike. Raises ValueError if a value is not finite or a scale exceeds what
    float16 holds.
    """
    spec = FORMATS[format]
    x = functional.pad(weight.float(), (0, -weight.shape[1] % spec.block))
    if not spec.has_min:
        return _checked(format, *_symmetric(spec.bits, x.unflatten(1, (-1, GROUP))))
    counts = torch.ones(weight.shape[1]) if importance is None else importance.float()
    blocks = fit(x.contiguous(), functional.pad(counts, (0, x.shape[1] - counts.numel())), spec.bits, spec.block)
    head, codes = blocks[:, :, : spec.head_bytes], blocks[:, :, spec.head_bytes :]
    return _checked(format, codes, head.clone(memory_format=torch.contiguous_format).view(torch.float16))


def _checked(format: str, codes: Tensor, numbers: Tensor) -> Tensor:
    """Codes uint8 [N, B, S], and d (and m) float16 [N, B, 1 or 2], as blocks."""
    if not bool(numbers.isfinite().all()):
        raise ValueError(f"the weight has values that {format} cannot hold")
    if format in ("q4_0", "q4_1", "q5_1"):
        fifths = [_fifth_bits(codes)] if FORMATS[format].bits == 5 else []
        codes = torch.cat((*fifths, codes[:, :, : GROUP // 2] & 15 | codes[:, :, GROUP // 2 :] << 4), dim=2)
    return torch.cat((numbers.contiguous().view(torch.uint8), codes), dim=2).flatten(1)


def _fifth_bits(codes: Tensor) -> Tensor:
    bits: Tensor = (codes >> 4).unflatten(2, (-1, 8)) << torch.arange(8, dtype=torch.uint8)
    return bits.sum(3, dtype=torch.uint8)


def _symmetric(bits: int, x: Tensor) -> tuple[Tensor, Tensor]:
    if bits == 8:
        stored = (x.abs().amax(2, keepdim=True) / 127).half()
        return _divide(x, stored.float()).clamp(-127, 127).to(torch.int8).view(torch.uint8), stored
    peak = x.gather(2, x.abs().argmax(2, keepdim=True))
    stored = (peak / -8).half()
    return (_divide(x, stored.float()).clamp(-8, 7) + 8).to(torch.uint8), stored


def _divide(x: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0, x / scale).round()


def _clipped(x: Tensor, importance: Tensor, top: float) -> tuple[Tensor, Tensor]:
    """The best d and m [N, B] of those ranges that leave out a part at either end."""
    low, high = x.amin(2), x.amax(2)
    best = (high - low) / top, low
    least = _error(x, importance, *best, top)
    for below, above in _ends():
        m = low + (high - low) * (below * STEP)
        tried = (high - (high - low) * (above * STEP) - m) / top, m
        best, least = _better(x, importance, tried, best, least, top)
    return best


def _ends() -> Iterator[tuple[int, int]]:
    return ((below, above) for below in range(STEPS) for above in range(STEPS) if below + above <= MOST_STEPS)


def _improved(x: Tensor, importance: Tensor, found: tuple[Tensor, Tensor], top: float) -> tuple[Tensor, Tensor]:
    best = found[0].half().float(), found[1].half().float()
    least = _error(x, importance, *best, top)
    for _ in range(REFITS):
        d, m = _refitted(x, importance, *best, top)
        best, least = _better(x, importance, (d.half().float(), m.half().float()), best, least, top)
    return best


def _better(
    x: Tensor, importance: Tensor, tried: tuple[Tensor, Tensor], best: tuple[Tensor, Tensor], least: Tensor, top: float
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    error = _error(x, importance, *tried, top)
    better = error < least
    return (torch.where(better, tried[0], best[0]), torch.where(better, tried[1], best[1])), torch.where(better, error, least)


def _refitted(x: Tensor, importance: Tensor, d: Tensor, m: Tensor, top: float) -> tuple[Tensor, Tensor]:
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

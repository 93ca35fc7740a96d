"""From float weights to GGUF blocks: what `--quantize int8` (q8_0) and `int4` (q4_1) do."""

import torch
from torch import Tensor
from torch.nn import functional

from .blocks import FORMATS, GROUP

_MIN_CANDIDATES = 16
"""Ranges tried per group of q4_1: the whole one, and ever tighter ones down to about 3/4 of it."""


def quantize(format: str, weight: Tensor) -> Tensor:
    """Float [N, K] -> uint8 [N, G * block_bytes], blocks as in a GGUF file; K is padded with zeros to a multiple of 32.

    Values are rounded against the scale as stored, in float16. Raises ValueError if a value
    is not finite or a scale exceeds what float16 holds.
    """
    x = functional.pad(weight.float(), (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    if format == "q8_0":
        quants, numbers = _symmetric(x, x.abs().amax(2, keepdim=True) / 127, lowest=-127, highest=127)
    elif format == "q4_0":
        peak = x.gather(2, x.abs().argmax(2, keepdim=True))
        quants, numbers = _symmetric(x, peak / -8, lowest=-8, highest=7)
        quants = quants + 8
    else:
        quants, numbers = _with_min(x)
    if not numbers.isfinite().all():
        raise ValueError(f"the weight has values that {format} cannot hold")
    quants = quants.to(torch.int8).view(torch.uint8)
    if FORMATS[format].bits == 4:
        quants = quants[:, :, : GROUP // 2] | quants[:, :, GROUP // 2 :] << 4
    return torch.cat((numbers.contiguous().view(torch.uint8), quants), dim=2).flatten(1)


def _divide(x: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0, x / scale).round()


def _symmetric(x: Tensor, scale: Tensor, *, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    stored = scale.half()
    return _divide(x, stored.float()).clamp(lowest, highest), stored


def _with_min(x: Tensor) -> tuple[Tensor, Tensor]:
    """The range per group that loses least, by squared error, among a few that clip outliers."""
    low, high = x.amin(2, keepdim=True), x.amax(2, keepdim=True)
    best_error = torch.full_like(low, torch.inf)
    best_quants, best_numbers = torch.zeros_like(x), torch.cat(((high - low) / 15, low), dim=2).half()
    for step in range(_MIN_CANDIDATES):
        shrink = (high - low) * (step / _MIN_CANDIDATES / 8)
        minimum = (low + shrink).half()
        scale = ((high - shrink - minimum.float()) / 15).half()
        quants = _divide(x - minimum.float(), scale.float()).clamp(0, 15)
        error = (quants * scale.float() + minimum.float() - x).square().sum(2, keepdim=True)
        numbers = torch.cat((scale, minimum), dim=2)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_quants = torch.where(better, quants, best_quants)
        best_numbers = torch.where(better, numbers, best_numbers)
    return best_quants, best_numbers

"""What the linear and embedding operators compute, in plain PyTorch.

`linear` of a quantized format is the kernel's own arithmetic, bit for bit: exact integer
products of quantized activations and weights, float32 sums over the groups as `sum_in_order` says.
`linear` of bf16 likewise, of pairs of k; of w8a8, with one sum of integers over all of K.
`linear_dequantized` is what a perfect kernel without activation rounding would give.
"""

import functools
from collections.abc import Callable
from itertools import pairwise
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from . import activations
from .bands import read_bands
from .blocks import FORMATS, GROUP
from .formats import PANEL, Groups, unpack, unpack_groups
from .packed import packed_shape

LEAVES = 8


def linear(format: str, x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, out_features: int, multiplier: float) -> Tensor:
    """x [T, K] float32, quantized or rounded (see activations.py) unless `format` is "dense"; w packed in `format` -> [T, N] float32."""
    if format == "dense":
        out = _dense(x, w, out_features)
    elif format == "bf16":
        out = _pairs(x, w, out_features)
    elif FORMATS[format].row_activations:
        out = _integers(format, x, w, out_features)
    else:
        out = _quantized(format, activations.unpack(x), w, out_features)
    return _finish(out, bias, residual, multiplier)


def linear_mixed(x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, bands: str, multiplier: float) -> Tensor:
    """The outputs of every band, as its own linear computes them. x [T, K] quantized, w uint8 [bytes] (see bands.py) -> [T, N] float32."""
    shapes = [packed_shape(band.format, band.out_features, x.shape[1] * GROUP) for band in read_bands(bands)]
    weights = [part.view(shape) for part, shape in zip(w.split([prod(shape) for shape in shapes]), shapes, strict=True)]
    given = activations.unpack(x)
    outs = [_quantized(band.format, given, part, band.out_features) for band, part in zip(read_bands(bands), weights, strict=True)]
    return _finish(torch.cat(outs, dim=1), bias, residual, multiplier)


def _finish(out: Tensor, bias: Tensor | None, residual: Tensor | None, multiplier: float) -> Tensor:
    if bias is not None:
        out = out + bias
    out = out * multiplier
    return out if residual is None else out + residual


def _dense(x: Tensor, w: Tensor, out_features: int) -> Tensor:
    return functional.linear(x, unpack("dense", w, out_features, x.shape[1]))


def _pairs(x: Tensor, w: Tensor, out_features: int) -> Tensor:
    """x [T, K] and w bfloat16. Of k and k + 1 the product of the second is added first; numbers and sums below 2^-126 are zero."""
    x, weight = (activations.flush(each.float()).double() for each in (x, unpack("bf16", w, out_features, x.shape[1])))

    def add(out: Tensor, g: int) -> Tensor:
        for k in range(GROUP * g, min(GROUP * (g + 1), x.shape[1])):
            # In float64 the product is exact, and a sum so near that rounding it again gives the float32 nearest to the exact one.
            out = activations.flush((out.double() + x[:, k ^ 1, None] * weight[:, k ^ 1]).float())
        return out

    zero = torch.zeros(x.shape[0], out_features)
    return sum_in_order(zero, -(-x.shape[1] // GROUP), 1, add, meet=lambda left, right: activations.flush(left + right))


def _quantized(format: str, x: activations.Activations, w: Tensor, out_features: int) -> Tensor:
    weight = unpack_groups(format, w, out_features)

    def add(out: Tensor, g: int) -> Tensor:
        out = out + _dots(x, weight, g) * (x.scales[:, g, None] * weight.scales[:, g])
        if weight.mins is None:
            return out
        if weight.min_steps is None:
            return out + x.scaled_sums[:, g, None] * weight.mins[:, g]
        steps: Tensor = x.quants[:, g].unflatten(1, (2, -1)).sum(2) @ weight.min_steps[:, g].T
        return out + steps * (x.scales[:, g, None] * weight.mins[:, g])

    groups = FORMATS[format].groups
    return sum_in_order(torch.zeros(x.quants.shape[0], out_features), weight.quants.shape[1] // groups, groups, add)


def _integers(format: str, x: Tensor, w: Tensor, out_features: int) -> Tensor:
    quants, scales = activations.unpack_rows(x)
    weight = unpack_groups(format, w, out_features)
    of_w = weight.quants.flatten(1)
    sums = quants[:, : of_w.shape[1]].double() @ of_w.double().T  # exact
    return sums.float() * (scales * weight.scales[:, 0])


def _dots(x: activations.Activations, weight: Groups, g: int) -> Tensor:
    """[T, N]: the products of a group. Below 2^24 in size, so float32 holds every partial sum exactly; with scales in e4m3, the sum of
    both halves rounds once."""
    quants = weight.quants[:, g].float()
    if weight.half_scales is None:
        return x.quants[:, g] @ quants.T
    halves = zip(x.quants[:, g].tensor_split(2, dim=1), quants.tensor_split(2, dim=1), weight.half_scales[:, g].unbind(1), strict=True)
    first, second = ((of_x @ of_w.T) * scale for of_x, of_w, scale in halves)
    return first + second


def sum_in_order(
    zero: Tensor, blocks: int, groups: int, add: Callable[[Tensor, int], Tensor], meet: Callable[[Tensor, Tensor], Tensor] = torch.add
) -> Tensor:
    """The order in which every linear adds its K: eight leaves of whole blocks, each in order, that meet as a tree.

    Leaf i has the blocks from blocks * i // 8 on, of `groups` groups each.
    add(sum, g) adds group g to a sum, which is `zero` at first; meet(left, right) adds two sums.
    """
    bounds = [blocks * leaf // LEAVES * groups for leaf in range(LEAVES + 1)]
    sums = [functools.reduce(add, range(begin, end), zero) for begin, end in pairwise(bounds)]
    while len(sums) > 1:
        sums = [meet(left, right) for left, right in zip(sums[::2], sums[1::2], strict=True)]
    return sums[0]


def linear_dequantized(format: str, x: Tensor, w: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """The same product with exact weights and unrounded activations [T, K], in the dtype of `x`."""
    weight = unpack(format, w, out_features, x.shape[1]).to(x.dtype)
    return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def embedding(format: str, tokens: Tensor, w: Tensor, dim: int, multiplier: float) -> Tensor:
    """tokens [T] int32, w packed in `format` -> rows [T, dim] float32, times multiplier."""
    return unpack(format, w, w.shape[0] * PANEL, dim)[tokens.long()] * multiplier

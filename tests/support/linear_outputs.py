"""Runs quantized linears of many shapes on a kernel library, in a process of its own.

    python linear_outputs.py LIBRARY OUTPUT

Writes [{case: output}, {case: AMX tile products}] for every case of `cases()`; the products are None
where nobody counts them. Activations and weights end where a page ends that nobody may read beyond.
"""

import ctypes
import itertools
import mmap
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from amx import counted_products
from torch import Tensor
from weight_blocks import random_blocks

from engine.kernels import ops
from engine.kernels.formats import PANEL_QUANTIZERS
from engine.kernels.linear import activations, reference
from engine.kernels.linear.bands import Band, is_mixed, read_bands
from engine.kernels.linear.blocks import FORMATS
from engine.kernels.linear.formats import pack_blocks
from engine.kernels.linear.packed import kernel_of

ROWS = (1, 3, 15, 16, 17, 31, 32, 33, 64, 100)
OUT_FEATURES = (1, 40, 64, 113)
IN_FEATURES = (31, 160, 600)
WIDE = (49, 17, 24000)
"""So wide that the rows are several tasks."""
THREADS = (1, 4)


class Case(NamedTuple):
    format: str
    rows: int
    out_features: int
    in_features: int
    threads: int


MIXED = ("q8_0:40+q6_k:33+q8_0:7", "i5_g32:16+w4_g128:48+q4_1:49")
IN_EVERY_SHAPE = ("q8_0", "q4_1", "q6_k", "w8a8")
"""Tiles of bytes and of unpacked codes, with minima, and one for each half of a group or for two groups. Others differ in what
unpacks them."""


def cases() -> list[Case]:
    every, few = [*itertools.product(ROWS, OUT_FEATURES, IN_FEATURES), WIDE], [*itertools.product((1, 17, 33), (40, 113), (600,))]
    of_one_format = [
        Case(format, rows, outer, whole_blocks(format, inner), threads)
        for format in sorted(FORMATS)
        for (rows, outer, inner), threads in itertools.product(every if format in IN_EVERY_SHAPE else few, THREADS)
    ]
    of_several = itertools.product(MIXED, ROWS, THREADS)
    return [
        *of_one_format,
        *(Case(text, rows, sum(band.out_features for band in read_bands(text)), 768, threads) for text, rows, threads in of_several),
    ]


def whole_blocks(format: str, in_features: int) -> int:
    """Rounded up to what tensors in a format of larger blocks have."""
    return -(-in_features // FORMATS[format].block) * FORMATS[format].block if FORMATS[format].groups > 1 else in_features


def operands(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x quantized, w packed, bias and residual: the same in every process, and for every number of rows."""
    generator = torch.Generator().manual_seed(case.out_features * 31 + case.in_features)
    bias = torch.randn(case.out_features, generator=generator)
    packed = [
        pack_blocks(band.format, random_blocks(band.format, band.out_features, case.in_features, seed=case.in_features))
        for band in bands(case)
    ]
    w = torch.cat([each.flatten() for each in packed]) if is_mixed(case.format) else packed[0]
    x = torch.randn(max(ROWS), case.in_features, generator=generator)[: case.rows]
    residual = torch.randn(max(ROWS), case.out_features, generator=generator)[: case.rows]
    quantize = activations.QUANTIZERS[PANEL_QUANTIZERS[bands(case)[0].format]]
    return quantize(x), w, bias, residual


def bands(case: Case) -> list[Band]:
    return read_bands(case.format) if is_mixed(case.format) else [Band(case.format, case.out_features)]


def products(case: Case) -> int:
    """Tile products that a case takes: one per 16 rows or part of them, panel and group, or subgroup of 16, from 16 rows on. Of w8a8
    two groups share one."""
    depth = 64 if case.format == "w8a8" else 32
    groups, row_tiles = -(-case.in_features // depth), -(-case.rows // 16)
    of_panels = sum(-(-band.out_features // 16) * max(FORMATS[band.format].subscales, 1) for band in bands(case))
    return row_tiles * groups * of_panels if case.rows >= 16 else 0


def run(case: Case) -> Tensor:
    x, w, bias, residual = operands(case)
    torch.set_num_threads(case.threads)
    operator = getattr(torch.ops.engine, f"linear_{kernel_of(case.format)}")
    out: Tensor = operator(guarded(x), guarded(w), bias, residual, case.format if is_mixed(case.format) else case.out_features, 1.0)
    return out


def expected(case: Case) -> Tensor:
    """By the reference."""
    if is_mixed(case.format):
        return reference.linear_mixed(*operands(case), case.format, 1.0)
    return reference.linear(case.format, *operands(case), case.out_features, 1.0)


def guarded(tensor: Tensor) -> Tensor:
    """A copy that ends where the last page begins that may be read."""
    size = -(-tensor.numel() // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    bytes_of = torch.frombuffer(memory, dtype=torch.uint8)
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(bytes_of.data_ptr() + size), mmap.PAGESIZE, 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = bytes_of[size - tensor.numel() : size].view(tensor.shape)
    copy.copy_(tensor)
    return copy


def main() -> None:
    ops.load(Path(sys.argv[1]))
    counter = counted_products()
    outputs, counts = {}, {}
    for case in cases():
        outputs[case] = run(case)
        counts[case] = next(counter)
    torch.save([{tuple(case): out for case, out in outputs.items()}, {tuple(case): count for case, count in counts.items()}], sys.argv[2])


if __name__ == "__main__":
    main()

"""Units of quantized rows, as kernels walk them: where the runs of codes are, and weights made of them (see formats.py)."""

from typing import Any

import triton
import triton.language as tl

from .codes import decode
from .group_numbers import groups_of_unit, minima_of, parts_of_run, plane_count, scales_of, trait
from .packed_rows import part_offset, planes


def format_constants(format: str, in_features: int) -> dict[str, Any]:
    """What kernels must know of a format and of where a row's parts begin."""
    parts = {"HIGH_AT": f"plane{planes(format)[-1].below}", "NUMBERS_AT": "numbers", "ZEROS_AT": "zeros", "INTEGERS_AT": "integers"}
    return {"FORMAT": format, **{name: part_offset(format, in_features, part) for name, part in parts.items()}}


@triton.jit
def load_if(pointers, mask, EVEN: tl.constexpr):
    """What lies there, or zero where the mask does not hold. EVEN: it holds everywhere."""
    if EVEN:
        return tl.load(pointers)
    return tl.load(pointers, mask=mask, other=0)


@triton.jit
def run_tiles(row, unit, byte, HIGH_AT: tl.constexpr, FORMAT: tl.constexpr):
    """Pointers to the bytes of the first run of each plane."""
    UNIT: tl.constexpr = groups_of_unit(FORMAT)
    tiles = tl.tuple(())
    for plane in tl.static_range(plane_count(FORMAT)):
        tiles += (row + plane * HIGH_AT + unit * (UNIT // parts_of_run(FORMAT, plane) * 32) + byte,)
    return tiles


@triton.jit
def load_runs(runs, tiles, unit, inside, PART: tl.constexpr, FORMAT: tl.constexpr, EVEN: tl.constexpr):
    """The runs of all planes that hold a part of the units from `unit` on; `runs` has those of the part before."""
    UNIT: tl.constexpr = groups_of_unit(FORMAT)
    loaded = tl.tuple(())
    for plane in tl.static_range(plane_count(FORMAT)):
        if PART % parts_of_run(FORMAT, plane) == 0:
            at = tiles[plane] + (unit * (UNIT // parts_of_run(FORMAT, plane)) + PART // parts_of_run(FORMAT, plane)) * 32
            loaded += (load_if(at, inside, EVEN),)
        else:
            loaded += (runs[plane],)
    return loaded


@triton.jit
def of_halves(words, k, PART: tl.constexpr, FORMAT: tl.constexpr, MINIMA: tl.constexpr):
    """The scales or minima of a part's weights: [.., .., 1], or [.., .., 32] where its halves have their own."""
    numbers = (minima_of(words, PART, 0, FORMAT) if MINIMA else scales_of(words, PART, 0, FORMAT))[:, :, None]
    if trait(FORMAT, "subscales") == 2:
        second = minima_of(words, PART, 1, FORMAT) if MINIMA else scales_of(words, PART, 1, FORMAT)
        numbers = tl.where((k < 16)[None, None, :], numbers, second[:, :, None])
    return numbers


@triton.jit
def weights_of(runs, words, k, PART: tl.constexpr, FORMAT: tl.constexpr):
    """The weights of a part: float32 [.., .., 32]."""
    values = decode(runs, words, PART, FORMAT).to(tl.float32) * of_halves(words, k, PART, FORMAT, False)
    if trait(FORMAT, "has_min"):
        values += of_halves(words, k, PART, FORMAT, True)
    return values

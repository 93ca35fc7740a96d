"""The scales, minima and zero points of a unit's groups: loaded as they are stored, and made numbers where they are used.

What is loaded for a unit is a tuple of words: of each of its blocks d (and m) in one, and the zero point if there is one; then the
scales (and minima) of each of its groups in one. So little can be loaded a step ahead of its use. Where a row is one block, its d and m
come first, and are loaded once.
"""

from typing import Any

import triton
import triton.language as tl

from ..linear.blocks import FORMATS
from .packed_rows import ROW_FORMATS, planes, unit_groups

_UNIT_GROUPS = {format: unit_groups(format) for format in ROW_FORMATS}
_PLANES = {format: planes(format) for format in ROW_FORMATS}


@triton.constexpr_function
def trait(format: str, name: str) -> Any:
    """A field or property of the format's row in the registry."""
    return getattr(FORMATS[format], name)


@triton.constexpr_function
def groups_of_unit(format: str) -> int:
    """Parts of a unit: what `codes.decode` gives at a time."""
    return _UNIT_GROUPS[format]


@triton.constexpr_function
def plane_count(format: str) -> int:
    """Planes that its codes are cut into."""
    return len(_PLANES[format])


@triton.constexpr_function
def parts_of_run(format: str, plane: int) -> int:
    """Groups that share the bytes of a run."""
    return _PLANES[format][plane].parts


@triton.constexpr_function
def blocks_of_unit(format: str) -> int:
    """Whose numbers are loaded with a unit."""
    return 0 if FORMATS[format].of_rows else max(1, _UNIT_GROUPS[format] // FORMATS[format].groups)


@triton.constexpr_function
def word_of_block(format: str, part: int) -> int:
    """Where in the tuple the numbers of a part's block are; its zero point is after them."""
    spec = FORMATS[format]
    return 0 if spec.of_rows else part // spec.groups * (1 + spec.has_zero_point)


@triton.constexpr_function
def word_of_group(format: str, part: int) -> int:
    """Where in the tuple the integers of a part are."""
    spec = FORMATS[format]
    before: int = blocks_of_unit(format)
    return spec.of_rows + before * (1 + spec.has_zero_point) + part


@triton.jit
def load_words(at, index, BYTES: tl.constexpr):
    """The integers of BYTES bytes that have these numbers from `at` on."""
    if BYTES == 1:
        words = tl.load(at + index)
    elif BYTES == 2:
        words = tl.load(at.to(tl.pointer_type(tl.int16)) + index)
    elif BYTES == 4:
        words = tl.load(at.to(tl.pointer_type(tl.int32)) + index)
    else:
        words = tl.load(at.to(tl.pointer_type(tl.int64)) + index)
    return words


@triton.jit
def row_words(row, FORMAT: tl.constexpr, NUMBERS_AT: tl.constexpr):
    """What comes before the words of every unit of these rows: of rows that are blocks, d and m."""
    words = tl.tuple(())
    if trait(FORMAT, "of_rows"):
        words += (load_words(row + NUMBERS_AT, 0, trait(FORMAT, "number_bytes") * trait(FORMAT, "numbers")),)
    return words


@triton.jit
def unit_words(row, unit, FORMAT: tl.constexpr, NUMBERS_AT: tl.constexpr, ZEROS_AT: tl.constexpr, INTEGERS_AT: tl.constexpr):
    """Of these units of the rows that begin at `row`: pointers to bytes, and numbers of units, whose shapes fit each other."""
    UNIT: tl.constexpr = groups_of_unit(FORMAT)
    words = tl.tuple(())
    block = unit * UNIT // trait(FORMAT, "groups")
    for i in tl.static_range(blocks_of_unit(FORMAT)):
        words += (load_words(row + NUMBERS_AT, block + i, trait(FORMAT, "number_bytes") * trait(FORMAT, "numbers")),)
        if trait(FORMAT, "has_zero_point"):
            words += (load_words(row + ZEROS_AT, block + i, 1),)
    if trait(FORMAT, "two_levels"):
        for i in tl.static_range(UNIT):
            words += (load_words(row + INTEGERS_AT, unit * UNIT + i, trait(FORMAT, "subscales") * trait(FORMAT, "numbers")),)
    return words


@triton.jit
def power_of_two(exponent):
    """e8m0, halved. Below the normal numbers, a bit of the fraction."""
    return tl.where(exponent < 2, 0x00200000 << exponent, (exponent - 1) << 23).to(tl.float32, bitcast=True)


@triton.jit
def half_e4m3(byte):
    """Half of what a float8_e4m3fn byte means, float32. Its exponent counts from 7, and float32's from 127."""
    magnitude = ((byte & 127) << 20).to(tl.float32, bitcast=True) * (2.0**119)
    return tl.where(byte > 127, -magnitude, magnitude)


@triton.jit
def number_of(word, NUMBER: tl.constexpr, FORMAT: tl.constexpr):
    """d (0) or m (1) of a block, float32."""
    if trait(FORMAT, "number_bytes") == 1:
        numbers = power_of_two(word.to(tl.int32))
    elif trait(FORMAT, "number_bytes") == 4:
        numbers = (word >> 32 * NUMBER).to(tl.int32).to(tl.float32, bitcast=True)
    else:
        numbers = (word >> 16 * NUMBER).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return numbers


@triton.jit
def scales_of(words, PART: tl.constexpr, HALF: tl.constexpr, FORMAT: tl.constexpr):
    """What the codes of a part, or of half of it, are multiplied with: float32."""
    d = number_of(words[word_of_block(FORMAT, PART)], 0, FORMAT)
    if trait(FORMAT, "two_levels"):
        scales = words[word_of_group(FORMAT, PART)].to(tl.int32)
        if trait(FORMAT, "divides"):
            d = tl.where(d == 0.0, 0.0, tl.div_rn(half_e4m3(scales >> 8 * HALF & 255), d))
        elif trait(FORMAT, "e4m3_scales"):
            d = d * half_e4m3(scales >> 8 * HALF & 255)
        elif trait(FORMAT, "of_rows"):
            d = d * (scales & 255).to(tl.float32)
        else:
            d = d * (scales << (24 - 8 * HALF) >> 24).to(tl.float32)
    return d


@triton.jit
def minima_of(words, PART: tl.constexpr, HALF: tl.constexpr, FORMAT: tl.constexpr):
    """What is added to a part, or to half of it: float32."""
    m = number_of(words[word_of_block(FORMAT, PART)], 1, FORMAT)
    if trait(FORMAT, "two_levels"):
        integers = words[word_of_group(FORMAT, PART)].to(tl.int32)
        m = -m * (integers >> 8 * (trait(FORMAT, "subscales") + HALF) & 255).to(tl.float32)
    return m


@triton.jit
def zero_points_of(words, PART: tl.constexpr, BASE: tl.constexpr, FORMAT: tl.constexpr):
    """A part's zero points plus BASE: bfloat16, exactly."""
    zeros = words[word_of_block(FORMAT, PART) + 1].to(tl.int8, bitcast=True).to(tl.int32)
    return (zeros + BASE).to(tl.float32).to(tl.bfloat16)

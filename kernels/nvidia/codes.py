"""Codes of quantized weights to bfloat16, four at a time in registers.

Every code, or what its table says, becomes a small whole number less its zero point, which bfloat16 holds exactly (up to
256). Triton would take each byte apart from its neighbours. PTX works on the four bytes of a register at once: a shift and
a mask find a part's bits, a permutation of bytes puts each below 0x43, which makes 128 + code of it, and one subtraction
takes 128 + zero from two of them. A byte is its lower seven bits less 128 if the eighth is set, by the same means. A table of
16 signed bytes lies in four registers: codes choose bytes of them.
"""

import triton
import triton.language as tl

from ..linear.blocks import FORMATS
from .group_numbers import trait, zero_points_of
from .packed_rows import ROW_FORMATS, planes, unit_groups

_SHIFTED_UP = 0x43434343
"""Upper bytes of bfloat16 numbers from 128 to 255: below them, the numbers less 128."""


def _find(plane: int, format: str, part: int, source: str, to: str) -> list[str]:
    """A plane's bits of a part's four codes, each at its place in its byte."""
    width, below = planes(format)[plane]
    shift = width * (part % (8 // width)) - below
    mask = ((1 << width) - 1 << below) * 0x01010101
    moved = f"{'shr' if shift > 0 else 'shl'}.b32 {to}, {source}, {abs(shift)};" if shift else f"mov.b32 {to}, {source};"
    return [moved, f"and.b32 {to}, {to}, 0x{mask:08x};"]


def _look_up(table: tuple[int, ...]) -> list[str]:
    """Codes in the lower halves of t's bytes to the table's signed bytes. A permutation chooses among eight bytes by three bits."""
    words = [sum((value & 0xFF) << 8 * byte for byte, value in enumerate(table[first : first + 4])) for first in range(0, 16, 4)]
    lower, upper = ([f"mov.b32 a, 0x{words[i]:08x};", f"mov.b32 b, 0x{words[i + 1]:08x};"] for i in (0, 2))
    return [
        *("shr.b32 a, t, 4;", "or.b32 t, t, a;", "prmt.b32 t, t, t, 0x2020;"),  # four codes, side by side
        *("and.b32 c, t, 0x7777;", *lower, "prmt.b32 d, a, b, c;", *upper, "prmt.b32 c, a, b, c;"),
        *("shr.b32 t, t, 1;", "and.b32 t, t, 0x4444;", "or.b32 t, t, 0x3210;", "prmt.b32 t, d, c, t;"),
    ]


def _numbers(codes: str, lower: str, upper: str) -> list[str]:
    """128 + each of four codes below 128, as bfloat16: the first two into `lower`."""
    return [f"prmt.b32 {lower}, {codes}, 0x{_SHIFTED_UP:08x}, 0x4140;", f"prmt.b32 {upper}, {codes}, 0x{_SHIFTED_UP:08x}, 0x4342;"]


def _subtract(lower: str, upper: str) -> list[str]:
    return [f"sub.rn.bf16x2 $0, $0, {lower};", f"sub.rn.bf16x2 $1, $1, {upper};"]


def _decoder(format: str, part: int) -> str:
    """PTX: registers of four bytes of each plane, and of four bfloat16 zero points if there are any -> four bfloat16."""
    spec, sources = FORMATS[format], [f"${2 + plane}" for plane in range(len(planes(format)))]
    zeros = [f"${2 + len(sources) + half}" for half in range(2)]
    lines = _find(0, format, part, sources[0], "t")
    if len(sources) == 2:
        lines += [*_find(1, format, part, sources[1], "a"), "or.b32 t, t, a;"]
    if spec.table:
        lines += _look_up(spec.table)
    if spec.table or spec.bits == 8:
        lines += ["and.b32 a, t, 0x7f7f7f7f;", *_numbers("a", "$0", "$1")]
        lines += ["and.b32 a, t, 0x80808080;", *_numbers("a", "c", "d"), *_subtract("c", "d")]
    else:
        lines += _numbers("t", "$0", "$1")
    if spec.has_zero_point:
        lines += _subtract(*zeros)
    elif not spec.table and spec.bits < 8:
        zero = 0x4300 | spec.zero  # 128 + zero
        lines += [f"mov.b32 a, 0x{zero:04x}{zero:04x};", *_subtract("a", "a")]
    return "\n".join(("{", ".reg .b32 t, a, b, c, d;", *lines, "}"))


def _registers(format: str) -> str:
    """The constraints of a decoder. Results are written before all that is given has been read."""
    given = len(planes(format)) + 2 * FORMATS[format].has_zero_point
    return ",".join(("=&r", "=&r", *("r",) * given))


_DECODERS = {format: tuple(_decoder(format, part) for part in range(unit_groups(format))) for format in ROW_FORMATS}
_REGISTERS = {format: _registers(format) for format in ROW_FORMATS}


@triton.constexpr_function
def decoder(format: str, part: int) -> str:
    """The PTX that decodes a part."""
    return _DECODERS[format][part]


@triton.constexpr_function
def registers(format: str) -> str:
    """What it takes and gives."""
    return _REGISTERS[format]


@triton.constexpr_function
def zero_point_base(format: str) -> int:
    """What is added to a zero point before a decoder gets it."""
    return 0 if FORMATS[format].bits == 8 else 128


@triton.jit
def decode(runs, words, PART: tl.constexpr, FORMAT: tl.constexpr):
    """runs: bytes [.., .., 32] of each plane; words [.., ..] as of `unit_words` -> the codes of a part less their zero points, bfloat16."""
    if trait(FORMAT, "has_zero_point"):
        runs += (zero_points_of(words, PART, zero_point_base(FORMAT), FORMAT)[:, :, None],)
    return tl.inline_asm_elementwise(decoder(FORMAT, PART), registers(FORMAT), runs, dtype=tl.bfloat16, is_pure=True, pack=4)


@triton.jit
def ones_like(run):
    """bfloat16 ones that lie in registers as decoded bytes do: x then meets both in the same way."""
    ones: tl.constexpr = "mov.b32 $0, 0x3f803f80; mov.b32 $1, 0x3f803f80;"
    return tl.inline_asm_elementwise(ones, "=&r,=&r,r", (run,), dtype=tl.bfloat16, is_pure=True, pack=4)

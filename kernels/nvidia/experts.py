"""Grouped linear of a mixture's experts: out [P, N] = x w_e^T + bias_e, e the expert of each of P sorted pairs (see moe/reference.py).

The products are those of linear.py, linear_quantized.py and linear_fp8.py. A program first finds which rows of which expert are its:
`order` says where each expert's pairs begin, and the tiles that each expert fills, added up, say whose is which. So one grid, which only
depends on the number of pairs, serves every choice of a router; programs too many leave at once. No tile has rows of two experts, and
what is computed for a pair does not depend on the others.

P / E <= 16 (decode): as few rows of other linears, all of K in one program. The limit is reading the chosen experts once.
P / E <= 64: small tiles; beyond: large ones. That is the policy; `engine tune` times them all.

Rows of x are those of pairs, or with `gather` those of tokens, which nothing has to lay out by expert first. Weights of linears that
read the same x may lie one after another (`parts`): one launch computes them all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import sympy
import triton
import triton.language as tl

from .choices import Candidate, Operand, Problem, Range, dimensions_of
from .context import Context, Emit, launches_of
from .launch import Condition, Launch, Size, Tensor, cdiv
from .linear import FAMILY as DENSE
from .linear import few_rows, one_tile
from .linear_cuts import FEW_ROWS, Family, FewRows, Tile, block_n_of_few_rows
from .linear_fp8 import family as fp8_family
from .linear_fp8 import few_rows_fp8, one_tile_fp8
from .linear_quantized import family as quantized_family
from .linear_quantized import few_rows_quantized, one_tile_quantized
from .packed_rows import FP8_LAYOUTS, ROW_FORMATS, fp8_in_features

_UNEVEN_BLOCK_N = 32
"""Rows of w per program where steps of quantized weights do not divide K: with 64, what masks take is missing, and registers spill."""
_MOST_REGISTERS = 255
"""All that a thread can have. Where it is not said, q2_k gets 128 and spills."""
_FEWEST = 4
"""Rows per expert, on average, up to which kernels for eight rows are taken, where there are such."""


@triton.jit
def place_of_tile(order, tile, EXPERTS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr):
    """Of which expert this tile of up to BLOCK_M pairs is, the first of its pairs, and how many it has: none, if there are fewer tiles."""
    e = tl.arange(0, BLOCK_E)
    begins = tl.load(order + e, mask=e < EXPERTS, other=0)
    ends = tl.load(order + e + 1, mask=e < EXPERTS, other=0)
    tiles = (ends - begins + BLOCK_M - 1) // BLOCK_M
    up_to = tl.cumsum(tiles, 0)
    expert = tl.sum((up_to <= tile).to(tl.int32), 0)
    its = e == expert
    first = tl.sum(tl.where(its, begins + (tile - up_to + tiles) * BLOCK_M, 0), 0)
    return expert, first, tl.minimum(tl.sum(tl.where(its, ends, 0), 0) - first, BLOCK_M)


@triton.jit
def place_of_program(order, N, EXPERTS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """What a program computes: how many pairs, from which on; which tile of N outputs, from which column and row of weights on."""
    expert, first, rows = place_of_tile(order, tl.program_id(1), EXPERTS, BLOCK_E, BLOCK_M)
    tiles = tl.cdiv(N, BLOCK_N)
    part = tl.program_id(0) // tiles
    return rows, first.to(tl.int64), tl.program_id(0) % tiles, part * N, (part * EXPERTS + expert).to(tl.int64) * N


@triton.jit
def experts_few_rows_kernel(
    x, w, out, bias, order, N, K, x_stride, w_stride, out_stride, EXPERTS: tl.constexpr, BLOCK_E: tl.constexpr, GATHER: tl.constexpr,
    EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """A program per tile of up to 16 pairs and BLOCK_N outputs."""
    rows, begin, tile, column, row = place_of_program(order, N, EXPERTS, BLOCK_E, BLOCK_M, BLOCK_N)
    if rows > 0:
        few_rows(
            x if GATHER else x + begin * x_stride, order + (EXPERTS + 1) + begin if GATHER else None, w + row * w_stride,
            out + begin * out_stride + column, None if bias is None else bias + row, None, tile, rows, N, K,
            x_stride, w_stride, out_stride, 0, 1.0, EVEN_K, BLOCK_N, BLOCK_K, SLICES,
        )  # fmt: skip


@triton.jit
def experts_tile_kernel(
    x, w, out, bias, order, N, K, x_stride, w_stride, out_stride, EXPERTS: tl.constexpr, BLOCK_E: tl.constexpr, GATHER: tl.constexpr,
    EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program per tile."""
    rows, begin, tile, column, row = place_of_program(order, N, EXPERTS, BLOCK_E, BLOCK_M, BLOCK_N)
    if rows > 0:
        one_tile(
            x if GATHER else x + begin * x_stride, order + (EXPERTS + 1) + begin if GATHER else None, w + row * w_stride,
            out + begin * out_stride + column, None if bias is None else bias + row, None, 0, tile, 0, K, rows, N, K,
            x_stride, w_stride, out_stride, 0, 1.0, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip


@triton.jit
def experts_few_rows_quantized_kernel(
    x, w, out, bias, order, N, K, x_stride, w_stride, out_stride, EXPERTS: tl.constexpr, BLOCK_E: tl.constexpr, GATHER: tl.constexpr,
    FORMAT: tl.constexpr, HIGH_AT: tl.constexpr, NUMBERS_AT: tl.constexpr, ZEROS_AT: tl.constexpr, INTEGERS_AT: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """A program per tile of up to BLOCK_M pairs and BLOCK_N outputs."""
    rows, begin, tile, column, row = place_of_program(order, N, EXPERTS, BLOCK_E, BLOCK_M, BLOCK_N)
    if rows > 0:
        few_rows_quantized(
            x if GATHER else x + begin * x_stride, order + (EXPERTS + 1) + begin if GATHER else None, w + row * w_stride,
            out + begin * out_stride + column, None if bias is None else bias + row, None, tile, rows, N, K,
            x_stride, w_stride, out_stride, 0, 1.0, FORMAT, HIGH_AT, NUMBERS_AT, ZEROS_AT, INTEGERS_AT,
            EVEN, BLOCK_M, BLOCK_N, UNITS,
        )  # fmt: skip


@triton.jit
def experts_tile_quantized_kernel(
    x, w, out, bias, order, N, K, x_stride, w_stride, out_stride, EXPERTS: tl.constexpr, BLOCK_E: tl.constexpr, GATHER: tl.constexpr,
    FORMAT: tl.constexpr, HIGH_AT: tl.constexpr, NUMBERS_AT: tl.constexpr, ZEROS_AT: tl.constexpr, INTEGERS_AT: tl.constexpr,
    EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program per tile."""
    rows, begin, tile, column, row = place_of_program(order, N, EXPERTS, BLOCK_E, BLOCK_M, BLOCK_N)
    if rows > 0:
        one_tile_quantized(
            x if GATHER else x + begin * x_stride, order + (EXPERTS + 1) + begin if GATHER else None, w + row * w_stride,
            out + begin * out_stride + column, None if bias is None else bias + row, None, 0, tile, 0, K, rows, N, K,
            x_stride, w_stride, out_stride, 0, 1.0, FORMAT, HIGH_AT, NUMBERS_AT, ZEROS_AT, INTEGERS_AT,
            EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip


@triton.jit
def experts_few_rows_fp8_kernel(
    x, w, out, bias, order, N, K, x_stride, w_stride, out_stride, EXPERTS: tl.constexpr, BLOCK_E: tl.constexpr, GATHER: tl.constexpr,
    BLOCKWISE: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """A program per tile of up to 16 pairs and BLOCK_N outputs."""
    rows, begin, tile, column, row = place_of_program(order, N, EXPERTS, BLOCK_E, BLOCK_M, BLOCK_N)
    if rows > 0:
        few_rows_fp8(
            x if GATHER else x + begin * x_stride, order + (EXPERTS + 1) + begin if GATHER else None, w + row * w_stride,
            out + begin * out_stride + column, None if bias is None else bias + row, None, tile, rows, N, K,
            x_stride, w_stride, out_stride, 0, 1.0, BLOCKWISE, EVEN_K, BLOCK_N, BLOCK_K, SLICES,
        )  # fmt: skip


@triton.jit
def experts_tile_fp8_kernel(
    x, w, out, bias, order, N, K, x_stride, w_stride, out_stride, EXPERTS: tl.constexpr, BLOCK_E: tl.constexpr, GATHER: tl.constexpr,
    BLOCKWISE: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program per tile."""
    rows, begin, tile, column, row = place_of_program(order, N, EXPERTS, BLOCK_E, BLOCK_M, BLOCK_N)
    if rows > 0:
        one_tile_fp8(
            x if GATHER else x + begin * x_stride, order + (EXPERTS + 1) + begin if GATHER else None, w + row * w_stride,
            out + begin * out_stride + column, None if bias is None else bias + row, None, 0, tile, 0, K, rows, N, K,
            x_stride, w_stride, out_stride, 0, 1.0, BLOCKWISE, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The operands of one grouped linear. parts: linears whose weights [E * N, K] lie one after another; results are side by side."""

    x: Tensor
    w: Tensor
    bias: Tensor | None
    order: Tensor
    out: Tensor
    in_features: int
    experts: int
    parts: int
    gather: bool

    @property
    def pairs(self) -> Size:
        return self.out.shape[0]

    @property
    def out_features(self) -> int:
        """Of each part."""
        return int(self.out.shape[1]) // self.parts

    @property
    def chosen(self) -> int:
        """Pairs of one token, each of another expert."""
        symbols = sympy.sympify(self.pairs).free_symbols
        return int(sympy.sympify(self.pairs).subs(dict.fromkeys(symbols, 1)))

    @property
    def tokens(self) -> Size:
        return sympy.expand(self.pairs) / self.chosen

    def launch(self, function: Any, cut: FewRows | Tile, when: Condition, constants: dict[str, Any], **how: Any) -> Launch:
        """A launch of one of the kernels of this file."""
        added = {} if self.bias is None else {"bias": self.bias}
        absent = {"bias": None} if self.bias is None else {}
        tiles = sympy.Min(self.pairs, self.experts + self.pairs // cut.m)
        return Launch(
            function=function,
            grid=(self.parts * int(cdiv(self.out_features, cut.n)), tiles, 1),
            arguments={
                "x": self.x,
                "w": self.w,
                "out": self.out,
                "order": self.order,
                "N": self.out_features,
                "K": self.in_features,
                "x_stride": self.x.strides[0],
                "w_stride": self.w.strides[0],
                "out_stride": self.out.strides[0],
                **added,
            },
            constants={
                **absent,
                "EXPERTS": self.experts,
                "BLOCK_E": triton.next_power_of_2(self.experts),
                "GATHER": self.gather,
                "BLOCK_M": cut.m,
                "BLOCK_N": cut.n,
                **constants,
            },
            num_stages=cut.stages,
            when=(when,),
            **how,
        )


def experts_launches(family: Family, experts: Experts, context: Context) -> list[Launch]:
    """Launches for every number of pairs. family: with the kernels of this file."""
    return launches_of(experts_problem(family, experts, context.device.multiprocessors), context)


def experts_problem(family: Family, experts: Experts, multiprocessors: int) -> Problem:
    """A grouped linear as a problem: its size is the number of tokens, everything else is in its name."""
    few = {str(cut): _candidate(family, experts, cut, most=_tokens(experts, cut.m)) for cut in family.few}
    tiles = {f"tile {tile}": _candidate(family, experts, tile) for tile in (*family.tiles, *family.more_tiles)}
    named = {"x": experts.x, "w": experts.w, "bias": experts.bias}
    operands = [Operand(name=name, tensor=tensor, streamed=name == "w") for name, tensor in named.items() if tensor is not None]
    routes = (experts.experts, experts.chosen)
    gathered = " gathered" if experts.gather else ""
    return Problem(
        name=f"experts {family.name} {experts.parts}x{experts.out_features}x{experts.in_features}{gathered}, {routes[1]} of {routes[0]}",
        kind="rows",
        size=experts.tokens,
        candidates={**few, **tiles},
        policy=tuple(_policy(family, experts, multiprocessors)),
        operands=(*operands, Operand(name="order", tensor=experts.order, content="routes", routes=routes)),
        out=experts.out,
        dimensions=dimensions_of(experts.tokens),
    )


def _policy(family: Family, experts: Experts, multiprocessors: int) -> Iterator[Range]:
    """By the rows that an expert has on average."""
    block_n = block_n_of_few_rows(experts.chosen * experts.parts * experts.out_features, multiprocessors)
    if not all(family.few_constants(experts.in_features, cut).get("EVEN", True) for cut in family.few):
        block_n = min(block_n, _UNEVEN_BLOCK_N)
    for m in sorted({cut.m for cut in family.few}):
        cut = next(cut for cut in family.few if (cut.m, cut.n) == (m, block_n))
        yield Range(_tokens(experts, FEW_ROWS if m == FEW_ROWS else _FEWEST), str(cut))
    small, large = family.tiles[:2]
    yield Range(_tokens(experts, small.m), f"tile {small}")
    yield Range(None, f"tile {large}")


def _tokens(experts: Experts, rows: int) -> int:
    """So many give an expert that many rows, on average."""
    return rows * experts.experts // experts.chosen


def _candidate(family: Family, experts: Experts, cut: FewRows | Tile, most: int | None = None) -> Candidate:
    return Candidate(launches=partial(_launches, family, experts, cut), most=most)


def _launches(family: Family, experts: Experts, cut: FewRows | Tile, when: Condition) -> list[Launch]:
    if isinstance(cut, FewRows):
        constants = family.few_constants(experts.in_features, cut)
        return [
            experts.launch(family.few_rows, cut, when, family.constants | constants, max_registers=cut.max_registers or _MOST_REGISTERS)
        ]
    constants = {"EVEN_K": experts.in_features % cut.k == 0, "BLOCK_K": cut.k}
    return [experts.launch(family.tile, cut, when, family.constants | constants, num_warps=cut.warps)]


def experts_rows(kernel: str) -> Emit:
    """The emitter of x, w of all experts, bias [parts * E * N]?, order, out_features, experts, parts, gather -> [P, out_features]."""

    def emit(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
        x, w, bias, order, _, count, parts, gather = arguments
        in_features = fp8_in_features(kernel, w.shape[1]) if kernel in FP8_LAYOUTS else x.shape[1]
        experts = Experts(x=x, w=w, bias=bias, order=order, out=out, in_features=in_features, experts=count, parts=parts, gather=gather)
        return experts_launches(_family(kernel, in_features), experts, context)

    return emit


def _family(kernel: str, in_features: int) -> Family:
    if kernel == "dense":
        return replace(DENSE, few_rows=experts_few_rows_kernel, tile=experts_tile_kernel)
    if kernel in FP8_LAYOUTS:
        return replace(fp8_family(kernel), few_rows=experts_few_rows_fp8_kernel, tile=experts_tile_fp8_kernel)
    return replace(quantized_family(kernel, in_features), few_rows=experts_few_rows_quantized_kernel, tile=experts_tile_quantized_kernel)


EMITTERS: dict[str, Emit] = {f"experts_rows_{kernel}": experts_rows(kernel) for kernel in ("dense", *ROW_FORMATS, *FP8_LAYOUTS)}

"""The ways to cut a linear into launches, for any kind of weight, and the policy that chooses among them.

Few rows M (decode): a program takes some rows of w and all of K. More: tiles of the result, with K
cut among programs where the tiles are few. Which of them a kind of weight has is its `Family`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import sympy

from .choices import Candidate, Operand, Problem, Range, dimensions_of
from .context import Context, launches_of
from .launch import Condition, Launch, Tensor, cdiv
from .linear_launches import Linear

FEW_ROWS = 16
"""Up to so many rows M, few-rows kernels pad to this and take all of K."""


@dataclass(frozen=True, kw_only=True)
class FewRows:
    """How few_rows_kernel cuts the work: up to `m` rows of x, `n` rows of w per program, a step of `k` of K (what `k` counts is the
    kernel's)."""

    m: int = FEW_ROWS
    n: int
    k: int
    stages: int
    max_registers: int | None = None

    def __str__(self) -> str:
        return f"few rows {'' if self.m == FEW_ROWS else f'm{self.m} '}n{self.n} k{self.k} s{self.stages}"


@dataclass(frozen=True, kw_only=True)
class Tile:
    """How tile_kernel cuts the work: out in `m` x `n`, K in steps of `k`."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k} w{self.warps} s{self.stages}"


@dataclass(frozen=True, kw_only=True)
class Family:
    """The kernels of one kind of weight.

    few: ways to cut few rows, from the least `m` on; of each `m` and `n` the first is the policy's. few_constants: what the kernel
    must know of K and of one. tiles: the policy's, from small to large, each for the M from which on it gives every multiprocessor one.
    more_tiles: what a tuner may try besides. persistent: a kernel with as many programs as multiprocessors, which walk the tiles,
    and its tiles.
    """

    name: str
    few_rows: Any
    few: tuple[FewRows, ...]
    few_constants: Callable[[int, FewRows], dict[str, Any]]
    tile: Any
    tiles: tuple[Tile, ...]
    more_tiles: tuple[Tile, ...] = ()
    persistent: Any = None
    persistent_tiles: tuple[Tile, ...] = ()
    constants: dict[str, Any] = field(default_factory=dict)


def linear_launches(family: Family, linear: Linear, context: Context) -> list[Launch]:
    """Launches for every M."""
    return launches_of(linear_problem(family, linear, context), context)


def linear_problem(family: Family, linear: Linear, context: Context) -> Problem:
    """A linear as a problem: its size is M, everything else is in its name."""
    multiprocessors = context.device.multiprocessors
    few = {str(cut): _few_candidate(family, linear, cut) for cut in family.few}
    splits = policy_splits(family.tiles[0], linear, multiprocessors)
    split = dict(_split_candidates(family, linear, context, splits))
    whole = {f"tile {tile}": _tile_candidate(family, linear, tile) for tile in (*family.tiles, *family.more_tiles)}
    block_n = block_n_of_few_rows(linear.out_features, multiprocessors)
    policy = [
        *_few_rows(family, block_n),
        *_many_rows(family, linear, multiprocessors, splits),
    ]
    operands = {"x": linear.x, "w": linear.w, "bias": linear.bias, "residual": linear.residual}
    return Problem(
        name=f"linear {family.name} {linear.out_features}x{linear.in_features}",
        kind="rows",
        size=linear.rows,
        candidates={**few, **split, **whole, **_persistent_candidates(family, linear, multiprocessors)},
        policy=tuple(policy),
        operands=tuple(Operand(name=name, tensor=tensor, streamed=name == "w") for name, tensor in operands.items() if tensor is not None),
        out=linear.out,
        dimensions=dimensions_of(linear.rows),
    )


def block_n_of_few_rows(features: int, multiprocessors: int) -> int:
    """Rows of w per program: as many as still leave nine in ten multiprocessors one."""
    return next((block for block in (64, 32) if 10 * cdiv(features, block) >= 9 * multiprocessors), 16)


def policy_splits(tile: Tile, linear: Linear, multiprocessors: int) -> int:
    """Among how many programs K is cut: as many as fill the multiprocessors, each with at least two steps."""
    return min(round(multiprocessors / int(cdiv(linear.out_features, tile.n))), linear.in_features // (2 * tile.k))


def rows_that_fill(tile: Tile, features: int, multiprocessors: int) -> int:
    """The least M at which there is a tile for every multiprocessor."""
    return tile.m * (int(cdiv(multiprocessors, cdiv(features, tile.n))) - 1) + 1


def _few_rows(family: Family, block_n: int) -> Iterator[Range]:
    """The policy for M up to FEW_ROWS."""
    for m in dict.fromkeys(cut.m for cut in family.few):
        yield Range(m, next(str(cut) for cut in family.few if (cut.m, cut.n) == (m, block_n)))


def _many_rows(family: Family, linear: Linear, multiprocessors: int, splits: int) -> Iterator[Range]:
    """The policy for M > FEW_ROWS."""
    first, small = FEW_ROWS + 1, family.tiles[0]
    if splits > 1:
        yield Range(small.m, _split_name(splits, small))
        first = small.m + 1
    begins = [first]
    for smaller, tile in pairwise(family.tiles):
        begins.append(max(begins[-1], smaller.m + 1, rows_that_fill(tile, linear.out_features, multiprocessors)))
    ends = [*(begin - 1 for begin in begins[1:]), None]
    for tile, begin, end in zip(family.tiles, begins, ends, strict=True):
        if end is None or begin <= end:
            yield Range(end, f"tile {tile}")


def _few_candidate(family: Family, linear: Linear, cut: FewRows) -> Candidate:
    def launches(when: Condition) -> list[Launch]:
        grid = (cdiv(linear.out_features, cut.n), 1, 1)
        constants = {**family.constants, **family.few_constants(linear.in_features, cut), "BLOCK_N": cut.n}
        return [linear.launch(family.few_rows, grid, constants, num_stages=cut.stages, max_registers=cut.max_registers, when=(when,))]

    return Candidate(launches=launches, most=cut.m)


def _tile_candidate(family: Family, linear: Linear, tile: Tile) -> Candidate:
    def launches(when: Condition) -> list[Launch]:
        grid = (cdiv(linear.rows, tile.m) * cdiv(linear.out_features, tile.n), 1, 1)
        constants = {"SPLIT_K": 0, "PARTIAL": False, **_tile_constants(family, linear, tile)}
        return [linear.launch(family.tile, grid, constants, num_warps=tile.warps, num_stages=tile.stages, when=(when,))]

    return Candidate(launches=launches)


def _split_name(splits: int, tile: Tile) -> str:
    return f"split {splits} {tile}"


def _split_candidates(family: Family, linear: Linear, context: Context, policy: int) -> Iterator[tuple[str, Candidate]]:
    """K cut as the policy does, half as often and twice as often: for M up to the small tile's."""
    tile = family.tiles[0]
    for splits in sorted({policy // 2, policy, 2 * policy}):
        if 1 < splits <= linear.in_features // tile.k:
            yield _split_name(splits, tile), Candidate(launches=partial(_split, family, linear, tile, splits, context), most=tile.m)


def _split(family: Family, linear: Linear, tile: Tile, splits: int, context: Context, when: Condition) -> list[Launch]:
    split_k = cdiv(cdiv(linear.in_features, tile.k), splits) * tile.k
    splits = cdiv(linear.in_features, split_k)
    sums = context.allocate("float32", (splits, sympy.Min(linear.rows, tile.m), linear.out_features))
    to_sums = replace(linear, bias=None, residual=None, multiplier=1.0, out=replace(sums, shape=sums.shape[1:], strides=sums.strides[1:]))
    cut = to_sums.launch(
        family.tile,
        (cdiv(linear.out_features, tile.n), splits, 1),
        {"SPLIT_K": split_k, "PARTIAL": True, **_tile_constants(family, linear, tile)},
        num_warps=tile.warps,
        num_stages=tile.stages,
        when=(when,),
    )
    return [cut, linear.add_splits(sums, when=(when,))]


def _tile_constants(family: Family, linear: Linear, tile: Tile) -> dict[str, Any]:
    return {**family.constants, "EVEN_K": linear.in_features % tile.k == 0, "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k}


def _persistent_candidates(family: Family, linear: Linear, multiprocessors: int) -> dict[str, Candidate]:
    """Only for operands that the copy engine reads: rows that begin at multiples of 16 bytes."""
    if family.persistent is None or not all(_is_aligned(tensor) for tensor in (linear.x, linear.w)):
        return {}

    def launches(tile: Tile, when: Condition) -> list[Launch]:
        tiles = cdiv(linear.rows, tile.m) * cdiv(linear.out_features, tile.n)
        constants = {**family.constants, "PROGRAMS": multiprocessors, "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k}
        grid = (sympy.Min(tiles, multiprocessors), 1, 1)
        return [linear.launch(family.persistent, grid, constants, num_warps=tile.warps, num_stages=tile.stages, when=(when,))]

    return {f"persistent {tile}": Candidate(launches=partial(launches, tile), least=FEW_ROWS + 1) for tile in family.persistent_tiles}


def _is_aligned(tensor: Tensor) -> bool:
    item = 1 if tensor.dtype in ("uint8", "float8_e4m3fn") else 2
    return all(sympy.Mod(item * number, 16) == 0 for number in (tensor.offset, tensor.strides[0]))

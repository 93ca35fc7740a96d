"""What a step reads, spelled once: a build puts it into the program, the runtime binds it by name.

Dimensions: T new tokens of S sequences (S1 is S + 1), R rows whose logits are wanted, and for every
cache group G blocks of a sequence, B.G.
"""

from collections.abc import Iterable

from .graph import DRAW_INPUTS
from .manifest import CacheGroup, InputInfo

TOKEN_TYPES = "token_types"


def step_inputs(groups: Iterable[str], *, token_types: bool = False) -> list[InputInfo]:
    """Inputs of a step over caches of these groups. token_types: whether the model tells the texts of a pair apart.

    tokens, positions [T]; cu_seqlens [S1], prefix sums of the new tokens of each sequence; seq_lens [S],
    tokens of each sequence after the step; logit_rows [R], which of the T rows get logits. By group:
    block_table [S, B], the block of each `block_size` tokens of a sequence (what no new token sees may be
    any number), and slot_mapping [T], block * block_size + offset where each token's keys and values go.
    token_types [T]: 1 in the second text of a pair, else 0.
    """
    paged = [info for group in groups for info in (_int32(f"block_table.{group}", "S", f"B.{group}"), _int32(f"slot_mapping.{group}", "T"))]
    return [
        _int32("tokens", "T"),
        _int32("positions", "T"),
        _int32("cu_seqlens", "S1"),
        _int32("seq_lens", "S"),
        _int32("logit_rows", "R"),
        *([_int32(TOKEN_TYPES, "T")] if token_types else []),
        *paged,
    ]


def draw_inputs() -> list[InputInfo]:
    """What a step whose program draws tokens reads beside: how each row's is drawn."""
    return [InputInfo(name=name, dtype=dtype, dims=["R"]) for name, dtype in DRAW_INPUTS.items()]


def step_sizes(*, tokens: int, sequences: int, rows: int, groups: Iterable[CacheGroup], max_context: int) -> dict[str, int]:
    """Every dimension of a step of that many tokens, sequences and rows. max_context: tokens of the longest sequence."""
    widths = {f"B.{group.name}": -(-max_context // group.block_size) for group in groups}
    return {"T": tokens, "S": sequences, "S1": sequences + 1, "R": rows, **widths}


def _int32(name: str, *dims: str) -> InputInfo:
    return InputInfo(name=name, dtype="int32", dims=list(dims))

"""What a forward pass reads beside weights and caches: one step's tensors, which travel together."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class GroupInputs(NamedTuple):
    """Where the caches of one group of layers lie: block_table [S, B], slot_mapping [T] int32."""

    block_table: Tensor
    slot_mapping: Tensor


class Step(NamedTuple):
    """T new tokens of S sequences, of which R rows get logits. All int32.

    tokens, positions [T]; cu_seqlens [S + 1]; seq_lens [S]; logit_rows [R]; groups: by the names of cache groups. token_types [T]: 1 in
    the second text of a pair, else 0; None for models that do not tell them apart.
    """

    tokens: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    seq_lens: Tensor
    logit_rows: Tensor
    groups: dict[str, GroupInputs]
    token_types: Tensor | None = None

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Step":
        """From tensors by the names that a program gives its inputs, those of a group with its name behind a dot."""
        groups = [name.partition(".")[2] for name in tensors if name.startswith("block_table.")]
        by_group = {group: GroupInputs(*(tensors[f"{field}.{group}"] for field in GroupInputs._fields)) for group in groups}
        return cls(**{name: tensors[name] for name in cls._fields if name in tensors}, groups=by_group)

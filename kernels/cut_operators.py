"""The operators that stand between segments: calls of their own in a program, since they look at other rows.

The one place that knows their arguments: schemas, the partition of a graph, the check of a
program and the emitters are derived from this table. `cpu/attention_operator.h` repeats its order.
Imports no torch: the runtime reads it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from .attention.options import AttentionOptions


@dataclass(frozen=True, kw_only=True)
class CutOperator:
    """An operator by its arguments, in order: tensors, tensors that may be absent, scalars. It returns one tensor.

    mutates: the tensors that it writes. scalars: their types by name. In a `Call` an absent tensor is "".
    """

    name: str
    tensors: tuple[str, ...]
    optional: tuple[str, ...]
    scalars: Mapping[str, type]
    mutates: frozenset[str]

    @property
    def tensor_count(self) -> int:
        """Of all tensors, absent or not."""
        return len(self.tensors) + len(self.optional)

    @property
    def schema(self) -> str:
        """In torch's language."""
        aliases = {name: f"({letter}!)" for letter, name in zip("abcdefgh", sorted(self.mutates), strict=False)}
        arguments = [f"Tensor{aliases.get(name, '')} {name}" for name in self.tensors]
        arguments += [f"Tensor? {name}" for name in self.optional]
        arguments += [f"{kind.__name__} {name}" for name, kind in self.scalars.items()]
        return f"{self.name}({', '.join(arguments)}) -> Tensor"

    def named(self, arguments: Sequence[Any]) -> dict[str, Any]:
        """The arguments of a call, by name. Raises ValueError if there are too many or too few."""
        return dict(zip((*self.tensors, *self.optional, *self.scalars), arguments, strict=True))


ATTENTION = CutOperator(
    name="attention",
    tensors=("q", "k", "v", "k_cache", "v_cache", "cu_seqlens", "seq_lens", "block_table", "slot_mapping"),
    optional=("q_norm", "k_norm", "cos", "sin", "sinks", "q_scale"),
    scalars=get_type_hints(AttentionOptions),
    mutates=frozenset({"k_cache", "v_cache"}),
)
BIDIRECTIONAL_ATTENTION = CutOperator(
    name="bidirectional_attention",
    tensors=("q", "k", "v", "cu_seqlens"),
    optional=ATTENTION.optional,
    scalars=ATTENTION.scalars,
    mutates=frozenset(),
)
LATENT_ATTENTION = CutOperator(
    name="latent_attention",
    tensors=("q", "q_rope", "latents", "cache", "cu_seqlens", "seq_lens", "block_table", "slot_mapping"),
    optional=(),
    scalars={"scale": float},
    mutates=frozenset({"cache"}),
)
MEAN_POOL = CutOperator(name="mean_pool", tensors=("x", "cu_seqlens", "seq_lens"), optional=(), scalars={}, mutates=frozenset())
CUT_OPERATORS = {f"engine.{operator.name}": operator for operator in (ATTENTION, BIDIRECTIONAL_ATTENTION, LATENT_ATTENTION, MEAN_POOL)}
"""By the name that a `Call` targets."""

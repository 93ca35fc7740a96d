"""What one layer's attention does beside the plain softmax over keys. Imports nothing: the runtime reads it too."""

from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """The scalars of the attention operators, in the order of their schemas.

    scale: what products of queries and keys are multiplied with. window: a query at position p sees
    the keys p - window + 1..p, and in bidirectional attention those up to p + window - 1 too; 0: all
    of them. chunk: it sees those of its own chunk, from
    p // chunk * chunk on; 0: no chunks. With both, a key must be in both. softcap: a score s becomes
    softcap * tanh(s / softcap); 0: it stays. eps and norm_after_rope say how q_norm and k_norm
    normalize: before the rotation or after it. Models leave these two alone, as they call a norm of
    their own; `passes/fuse_into_attention.py` sets them.
    """

    scale: float
    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    eps: float = 0.0
    norm_after_rope: bool = False

    def scalars(self) -> tuple[float, int, int, float, float, bool]:
        """The operator's last arguments."""
        return self.scale, self.window, self.chunk, self.softcap, self.eps, self.norm_after_rope

    @classmethod
    def take(cls, arguments: dict[str, Any]) -> Self:
        """Remove the scalars from the arguments of a call, by name, and return them as options."""
        return cls(**{field.name: arguments.pop(field.name) for field in fields(cls)})

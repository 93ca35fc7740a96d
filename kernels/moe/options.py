"""What a router does with its logits, as the numbers and words that the operator `route` takes after its tensors."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RouteOptions:
    """`models/parts/moe.py` says what each means; here groups is 1 where there are none. shared: how many experts, behind those that have
    logits, every token has with a weight of 1, after those chosen."""

    chosen: int
    score: str
    groups: int = 1
    kept: int = 1
    best: int = 1
    zero_outside: bool = False
    weighting: str = "scores"
    normalized: bool = False
    eps: float = 0.0
    least: float = 0.0
    scale: float = 1.0
    shared: int = 0

    @classmethod
    def of(cls, values: Sequence[Any]) -> "RouteOptions":
        """From what `astuple` gives."""
        return cls(**dict(zip((field.name for field in fields(cls)), values, strict=True)))

    def with_shared(self, count: int) -> "RouteOptions":
        return replace(self, shared=count)

    @property
    def k(self) -> int:
        """How many experts a token has."""
        return self.chosen + self.shared

    @property
    def arguments(self) -> tuple[Any, ...]:
        return astuple(self)


_SCHEMA_TYPES = {int: "int", float: "float", str: "str", bool: "bool"}
_C_TYPES = {int: "int64_t", float: "double", str: "const char*", bool: "int32_t"}
SCHEMA = ", ".join(f"{_SCHEMA_TYPES[field.type]} {field.name}" for field in fields(RouteOptions))  # type: ignore[index]
C_ARGUMENTS = ", ".join(f"{_C_TYPES[field.type]} {field.name}" for field in fields(RouteOptions))  # type: ignore[index]

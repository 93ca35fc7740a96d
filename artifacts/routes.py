"""What an artifact tells of its routers: which experts each token chose."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .numbers import Index, Size


class RoutesInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Routers whose choices a step tells: those of `layers`, each of which chooses `chosen` of `experts` for every token.

    Each is a result [T, 2, chosen] int32, as the operator `route` gives it: experts, the best first, before the bits of their weights.
    """

    layers: list[Index]
    experts: Annotated[int, Meta(ge=1, le=2**16)]
    chosen: Size

    @property
    def results(self) -> list[str]:
        """Their names in the program, by layer."""
        return [f"routes.{layer}" for layer in self.layers]

    @property
    def typecode(self) -> str:
        """Of the narrowest integer that holds an expert's index, as `struct` and numpy call it."""
        return "B" if self.experts <= 256 else "H"

    def nested(self, tokens: Sequence[bytes]) -> list[list[list[int]]]:
        """[tokens, layers, chosen], of what a worker tells of each token: [layers, chosen] integers of `typecode`."""
        if not tokens:
            return []
        view: Any = memoryview(b"".join(tokens))
        found: list[list[list[int]]] = view.cast(self.typecode, [len(tokens), len(self.layers), self.chosen]).tolist()
        return found

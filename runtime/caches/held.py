"""What one sequence holds of one cache group."""

import numpy as np
from numpy.typing import NDArray


class Held:
    """Blocks in the order of the tokens, each for `block_size` of them; `table` has them as int32.

    Those before `first` are no longer held, or never were: no token to come sees what they stood
    for. The list only grows until it is dropped, and then there is a new one. places: how many
    blocks the longest sequence has.
    """

    def __init__(self, places: int) -> None:
        self.blocks: list[int] = []
        self.table: NDArray[np.int32] = np.empty(places, np.int32)
        self.first = 0

    def add(self, blocks: list[int]) -> None:
        count = len(self.blocks)
        self.table[count : count + len(blocks)] = blocks
        self.blocks += blocks

    def skip(self, count: int) -> None:
        """The first `count` places of a sequence that holds nothing yet stay empty."""
        self.add([0] * count)
        self.first = count

    def give_back(self, first: int) -> list[int]:
        """Hold nothing before place `first` any more; returns the blocks, for the caller to release."""
        blocks = self.blocks[self.first : first]
        self.first = max(self.first, first)
        return blocks

    def drop(self) -> list[int]:
        """Hold nothing any more; returns the blocks, for the caller to release."""
        blocks = self.blocks[self.first :]
        self.blocks, self.first = [], 0
        return blocks

    @property
    def held(self) -> list[int]:
        return self.blocks[self.first :]

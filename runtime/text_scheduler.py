"""Which texts an encoder computes in the next step."""

from collections import deque
from itertools import islice

from .scheduler import Chunk, Scheduler
from .sequence import Sequence

LOOK_AHEAD = 4
"""How many times the most that a step takes are looked at for one that fits."""


class TextScheduler(Scheduler):
    """Whole texts: each is computed in one step, and holds nothing before or after.

    A step takes the oldest text, and then whatever of those that follow fits into `max_batch_tokens`; a text that does not fit
    into any is computed by itself. `running` are those of steps that have been planned.
    """

    def schedule(self, *, ahead: bool = False) -> list[Chunk]:
        """Choose the next step's texts. Empty only if none waits."""
        chosen: list[Sequence] = []
        budget = self.max_batch_tokens
        for sequence in islice(self.waiting, LOOK_AHEAD * self.max_num_seqs):
            if len(chosen) == self.max_num_seqs or budget <= 0:
                break
            if not chosen or sequence.length <= budget:
                chosen.append(sequence)
                budget -= sequence.length
        taken = {sequence.id for sequence in chosen}
        self.waiting = deque(sequence for sequence in self.waiting if sequence.id not in taken)
        self.running += chosen
        return [Chunk(sequence, 0, sequence.length, 1, True) for sequence in chosen]

    def withdraw(self, chunks: list[Chunk]) -> None:
        texts = [chunk.sequence for chunk in chunks]
        for sequence in texts:
            self.running.remove(sequence)
        self.waiting = deque(sorted([*texts, *self.waiting], key=lambda sequence: sequence.arrival))

    def publish(self, chunk: Chunk) -> None:
        """The text has been computed."""
        self.prompt_tokens += chunk.size

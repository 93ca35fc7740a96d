"""Which sequences compute which tokens in the next step."""

from collections import deque
from typing import NamedTuple

from .caches.blocks import BlockManager
from .sequence import Sequence


class Chunk(NamedTuple):
    """`size` tokens of a sequence from `start` on, to be computed in one step.

    chooses: whether they reach the sequence's end, so that its next token is chosen.
    """

    sequence: Sequence
    start: int
    size: int
    chooses: bool


class Scheduler:
    """Continuous batching, first come first served.

    Both `running` and `waiting` are in order of arrival, and all of `running` arrived before all
    of `waiting`. A step takes one token of every decoding sequence first, and fills what is left
    of `max_batch_tokens` with prompts, oldest first, in chunks. A sequence whose next block is just
    being computed by another waits for it: equal prompts that arrive together are computed once. It gets the blocks for all
    its known tokens when it is admitted, and one more whenever it outgrows them. If there is none,
    the youngest running sequence gives up all of its blocks and computes its tokens again later:
    so the oldest always advances, and everybody becomes the oldest in time.

    A step may be scheduled ahead, while the one before it is being computed. Blocks that are
    released meanwhile can go to it at once: steps are computed one after the other.
    """

    def __init__(self, blocks: BlockManager, *, max_num_seqs: int, max_batch_tokens: int) -> None:
        assert 1 <= max_num_seqs <= max_batch_tokens
        self.blocks = blocks
        self.max_num_seqs = max_num_seqs
        self.max_batch_tokens = max_batch_tokens
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self._computing: dict[bytes, Sequence] = {}
        """Full blocks that a running sequence is about to compute and publish."""
        self.preemptions = 0
        self.prompt_tokens = 0
        self.prefix_queries = 0
        self.prefix_hits = 0

    @property
    def capacity(self) -> int:
        """Tokens that the whole cache holds. No sequence may need more of them computed."""
        return self.blocks.num_blocks * self.blocks.block_size

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence at the end of the line. It must fit an empty cache."""
        assert sequence.length <= self.capacity
        assert sequence.max_length <= self.capacity + 1
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """A sequence has ended or was aborted: its blocks are free at once."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self, *, ahead: bool = False) -> list[Chunk]:
        """Choose the next step's chunks, at most `max_batch_tokens` tokens and `max_num_seqs` chunks.

        Every chunk's sequence holds the blocks for it. Empty only if there is no work, or if a step
        `ahead` would have to preempt: who must give way is decided when it is known who has ended.
        """
        preemptions = self.preemptions
        chunks = self._decodes(ahead)
        if chunks is None:
            return []
        budget = self.max_batch_tokens - len(chunks)
        for sequence in self.running:
            if budget == 0:
                break
            if sequence.expected - sequence.num_computed > 1:
                chunks.append(_chunk(sequence, budget))
                budget -= chunks[-1].size
        if self.preemptions == preemptions:
            self._admit(chunks, budget)
        assert chunks or ahead or not self.has_work, "there is work, but nothing is scheduled"
        for sequence, start, size, chooses in chunks:
            sequence.num_computed = start + size
            sequence.expected += chooses
        return chunks

    def withdraw(self, chunks: list[Chunk]) -> None:
        """The step last scheduled is not going to be computed. Who was admitted for it stays so."""
        for sequence, start, _, chooses in chunks:
            sequence.num_computed = start
            sequence.expected -= chooses

    def publish(self, chunk: Chunk) -> None:
        """The chunk's keys and values are in the cache: blocks that are full now can be reused."""
        sequence = chunk.sequence
        full = (chunk.start + chunk.size) // self.blocks.block_size
        if full > sequence.num_published:
            digests = sequence.digests(full)
            for i in range(sequence.num_published, full):
                self.blocks.publish(sequence.blocks[i], digests[i])
                self._computing.pop(digests[i], None)
            sequence.num_published = full

    def _decodes(self, ahead: bool) -> list[Chunk] | None:
        """One token of every decoding sequence; None for a step ahead that would have to preempt."""
        chunks: list[Chunk] = []
        running = self.running
        block_size = self.blocks.block_size
        at = 0
        while at < len(running):
            sequence = running[at]
            at += 1
            expected = sequence.expected
            if expected - sequence.num_computed != 1 or expected >= sequence.max_length:
                continue  # it computes its prompt, or its last token is just being chosen
            if expected > len(sequence.blocks) * block_size:
                if ahead and self.blocks.num_available == 0:
                    return None
                if not self._grow(sequence):
                    break
            chunks.append(Chunk(sequence, expected - 1, 1, True))
        return chunks

    def _grow(self, sequence: Sequence) -> bool:
        """Give a running sequence one more block. False if it had to give up its own: it was the youngest."""
        while self.blocks.num_available == 0:
            youngest = self.running.pop()
            self._release(youngest)
            self.waiting.appendleft(youngest)
            self.preemptions += 1
            if youngest is sequence:
                assert self.running, "a sequence alone outgrew the cache"
                return False
        sequence.add_blocks(self.blocks.allocate(1))
        return True

    def _admit(self, chunks: list[Chunk], budget: int) -> None:
        blocks = self.blocks
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            digests = sequence.digests(sequence.length // blocks.block_size)
            # the block of the last token is computed in any case: its logits are wanted
            reusable = (sequence.length - 1) // blocks.block_size
            reused = blocks.match(digests[:reusable])
            if len(reused) < reusable and digests[len(reused)] in self._computing:
                break
            needed = -(-sequence.length // blocks.block_size) - len(reused)
            # one spare block per running sequence, or the newcomer would soon be preempted again
            if needed + len(self.running) > blocks.num_available - blocks.count_idle(reused):
                assert self.running, "a sequence alone does not fit the cache"
                break
            self.waiting.popleft()
            self.running.append(sequence)
            blocks.acquire(reused)
            sequence.add_blocks(reused)
            sequence.add_blocks(blocks.allocate(needed))
            sequence.num_computed = len(reused) * blocks.block_size
            sequence.num_published = len(reused)
            for digest in digests[len(reused) :]:
                self._computing.setdefault(digest, sequence)
            if sequence.cached_tokens is None:
                sequence.cached_tokens = sequence.num_computed
                self.prompt_tokens += sequence.num_prompt
                self.prefix_queries += sequence.length
                self.prefix_hits += sequence.num_computed
            chunks.append(_chunk(sequence, budget))
            budget -= chunks[-1].size

    def _release(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.drop_blocks())
        for digest in sequence.known_digests:
            if self._computing.get(digest) is sequence:
                del self._computing[digest]


def _chunk(sequence: Sequence, budget: int) -> Chunk:
    """As much of what a sequence has to compute as the budget allows."""
    remaining = sequence.expected - sequence.num_computed
    return Chunk(sequence, sequence.num_computed, min(remaining, budget), remaining <= budget)

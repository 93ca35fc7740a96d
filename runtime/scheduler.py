"""Which sequences compute which tokens in the next step."""

from bisect import insort
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from ..options.runtime import Scheduling
from .caches.caches import Caches
from .sequence import Sequence


class Chunk(NamedTuple):
    """`size` tokens of a sequence from `start` on, to be computed in one step.

    rows: how many of them, its last ones, get logits. chooses: whether they reach the sequence's end, so that
    its next token is chosen.
    """

    sequence: Sequence
    start: int
    size: int
    rows: int
    chooses: bool


class Scheduler:
    """Continuous batching.

    A step takes one token of every decoding sequence first, or several where a grammar left no choice, and
    fills what is left of `max_batch_tokens` with chunks of prompts. Under "fcfs" the oldest prompt gets as
    much of that as it can take, then the next. Under "fair" the oldest gets half, and the rest goes to those
    with the least left to compute: so a short prompt waits for no long one, and a long one becomes the oldest in time.

    `running` and `waiting` are in order of arrival. Nobody overtakes a sequence for which there are no
    blocks. One whose next block is just being computed by another waits for it, and may be overtaken:
    equal prompts that arrive together are computed once.

    A sequence is admitted when every cache group has the blocks that it takes. A full group gives it
    the blocks for all its known tokens at once, and one more whenever it outgrows them. A window
    or chunk group gives it those for its next tokens; if fewer are left, it computes fewer. Blocks that
    no later token sees are given back. If a group has none left, the youngest running sequence
    gives up all of its blocks and computes its tokens again later: so the oldest always advances,
    and everybody becomes the oldest in time.

    A step has at most `max_num_seqs` rows of logits. A prompt that is scored needs one for each token, so its chunks are
    no longer than the rows that nobody else needs; several prompts share them as they share the tokens.

    A step may be scheduled ahead, while the one before it is being computed. Blocks that are
    released meanwhile can go to it at once: steps are computed one after the other.
    """

    def __init__(self, caches: Caches, *, max_num_seqs: int, max_batch_tokens: int, scheduling: Scheduling = "fair") -> None:
        assert 1 <= max_num_seqs <= max_batch_tokens
        self.caches = caches
        self.max_num_seqs = max_num_seqs
        self.max_batch_tokens = max_batch_tokens
        self._is_fair = scheduling == "fair"
        self._arrivals = 0
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
        """Tokens of the longest sequence that the caches hold. No sequence may need more of them computed."""
        return self.caches.capacity

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence at the end of the line. It must fit empty caches."""
        assert sequence.length <= self.capacity
        assert sequence.max_length <= self.capacity + 1
        self._arrivals += 1
        sequence.arrival = self._arrivals
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
        budget = self.max_batch_tokens - sum(chunk.size for chunk in chunks)
        jumped = {chunk.sequence.id for chunk in chunks if chunk.size > 1}
        prompts = [sequence for sequence in self.running if sequence.fills and sequence.id not in jumped]
        if self.preemptions == preemptions:
            prompts += self._admit(budget if self._is_fair else budget - sum(sequence.left for sequence in prompts))
        for sequence, size in self._shares(self._wants(prompts, self.max_num_seqs - len(chunks)), budget):
            chunk = self._next_chunk(sequence, size, may_preempt=not (chunks or ahead))
            if chunk is None:
                break
            chunks.append(chunk)
            if self.preemptions > preemptions:
                break
        assert chunks or ahead or not self.has_work, "there is work, but nothing is scheduled"
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.start + chunk.size
            chunk.sequence.expected += chunk.chooses
        return chunks

    def withdraw(self, chunks: list[Chunk]) -> None:
        """The step last scheduled is not going to be computed. Who was admitted for it stays so."""
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.start
            chunk.sequence.expected -= chunk.chooses

    def jump(self, sequence: Sequence, count: int) -> None:
        """So many tokens of a decoding sequence follow the one that was chosen, without being chosen themselves."""
        sequence.expected += count
        sequence.jumped = sequence.left

    def publish(self, chunk: Chunk) -> None:
        """The chunk's keys and values are in the caches: blocks that are full now can be reused, and what falls behind is given back."""
        sequence = chunk.sequence
        end = chunk.start + chunk.size
        full = end // self.caches.block_size
        if full > sequence.num_published:
            digests = sequence.digests(full)
            self.caches.publish(sequence.held, digests, sequence.num_published)
            for digest in digests[sequence.num_published :]:
                self._computing.pop(digest, None)
            sequence.num_published = full
            self.caches.trim(sequence.held, end)

    def _decodes(self, ahead: bool) -> list[Chunk] | None:
        """One token of every decoding sequence, then all tokens of those that jumped, as far as they fit.

        None for a step ahead that would have to preempt.
        """
        chunks: list[Chunk] = []
        jumped: list[Chunk] = []
        running = self.running
        spare = self.max_batch_tokens - len(running)
        at = 0
        while at < len(running):
            sequence = running[at]
            at += 1
            expected, computed = sequence.expected, sequence.num_computed
            left = expected - computed
            if left < 1 or left > min(spare + 1, sequence.jumped) or expected >= sequence.max_length:
                continue  # it computes its prompt, or its last token is just being chosen
            if expected > sequence.room:
                if (ahead or left > 1) and self.caches.reach(sequence.held) < expected:
                    if left > 1:
                        continue  # nobody has to give way for more than one token
                    return None
                if not self._make_room(sequence, expected):
                    break
            if left == 1:
                chunks.append(Chunk(sequence, computed, 1, 1, True))
            else:
                jumped.append(Chunk(sequence, computed, left, 1, True))
                spare -= left - 1
        return chunks + jumped

    def _wants(self, prompts: list[Sequence], rows: int) -> list[tuple[Sequence, int]]:
        """How many tokens each of these sequences can compute where they have so many rows of logits."""
        scoring = [(sequence, sequence.num_prompt - sequence.first_row) for sequence in prompts if sequence.scores]
        shared = dict(self._shares(scoring, rows - (len(prompts) - len(scoring))))
        return [
            (sequence, sequence.first_row - sequence.num_computed + shared.get(sequence, 0) if sequence.scores else sequence.left)
            for sequence in prompts
        ]

    def _shares(self, wants: list[tuple[Sequence, int]], budget: int) -> Iterator[tuple[Sequence, int]]:
        """How much of a budget each of these sequences gets that wants so much, the oldest first; those that get none are left out."""
        wants = [(sequence, wanted) for sequence, wanted in wants if wanted > 0]
        if not wants or budget <= 0:
            return
        (oldest, first), *others = wants
        if self._is_fair:
            others.sort(key=lambda each: each[1])
            kept = min(first, -(-budget // 2))
            first = min(first, budget - min(budget - kept, sum(wanted for _, wanted in others)))
        else:
            first = min(first, budget)
        yield oldest, first
        budget -= first
        for sequence, wanted in others:
            if budget <= 0:
                return
            size = min(wanted, budget)
            yield sequence, size
            budget -= size

    def _next_chunk(self, sequence: Sequence, budget: int, *, may_preempt: bool) -> Chunk | None:
        """As much of what a sequence has to compute as budget and blocks allow. None if that is nothing."""
        start = sequence.num_computed
        end = start + min(sequence.expected - start, budget)
        if end > sequence.room:
            end = min(end, self.caches.reach(sequence.held))
            if end <= start:
                if not may_preempt or not self._make_room(sequence, start + 1):
                    return None
                end = start + 1
            self._extend(sequence, end)
        rows = max(0, end - sequence.first_row)
        return Chunk(sequence, start, end - start, rows, end == sequence.expected and sequence.generates)

    def _make_room(self, sequence: Sequence, end: int) -> bool:
        """Give a running sequence the blocks for the tokens before `end`. False if it had to give up its own: it was the youngest."""
        while self.caches.reach(sequence.held) < end:
            youngest = self.running.pop()
            self._release(youngest)
            insort(self.waiting, youngest, key=lambda each: each.arrival)
            self.preemptions += 1
            if youngest is sequence:
                assert self.running, "a sequence alone outgrew the caches"
                return False
        self._extend(sequence, end)
        return True

    def _extend(self, sequence: Sequence, end: int) -> None:
        sequence.room = self.caches.extend(sequence.held, end, sequence.length)

    def _admit(self, budget: int) -> list[Sequence]:
        """Give blocks to those that wait, as long as there is budget to compute; under "fair" it is shared, so it never ends."""
        admitted: list[Sequence] = []
        for sequence in list(islice(self.waiting, self.max_num_seqs)):
            if budget <= 0 or len(self.running) == self.max_num_seqs:
                break
            digests = sequence.digests(sequence.length // self.caches.block_size)
            # the block of a token whose logits or experts are wanted is computed in any case
            reusable = sequence.first_computed // self.caches.block_size
            cached = self.caches.match(digests[:reusable])
            if cached < reusable and digests[cached] in self._computing:
                continue
            # one spare block per running sequence, or the newcomer would soon be preempted again
            if not self.caches.fits(digests[:cached], sequence.length, spare=len(self.running)):
                assert self.running, "a sequence alone does not fit the caches"
                break
            self._start(sequence, digests, cached)
            admitted.append(sequence)
            if not self._is_fair:
                budget -= sequence.left
        return admitted

    def _start(self, sequence: Sequence, digests: list[bytes], cached: int) -> None:
        """A waiting sequence begins, with its first `cached` blocks as they are."""
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=lambda each: each.arrival)
        self.caches.acquire(sequence.held, digests[:cached])
        sequence.num_computed = cached * self.caches.block_size
        sequence.num_published = cached
        self._extend(sequence, sequence.num_computed + 1)
        for digest in digests[cached:]:
            self._computing.setdefault(digest, sequence)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.num_computed
            self.prompt_tokens += sequence.num_prompt
            self.prefix_queries += sequence.length
            self.prefix_hits += sequence.num_computed

    def _release(self, sequence: Sequence) -> None:
        self.caches.release(sequence.held)
        sequence.room = sequence.num_computed = 0
        sequence.jumped = 1
        for digest in sequence.known_digests:
            if self._computing.get(digest) is sequence:
                del self._computing[digest]

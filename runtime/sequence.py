"""One request while it is being computed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..protocol import Embed, SamplingParams
from .caches.digests import ROOT_DIGEST, block_digest
from .caches.held import Held
from .sampling.grammar import Grammar
from .sampling.state import SamplingState


class Sequence:
    """Tokens of one request, how many of them are in the caches, and in which blocks.

    tokens: int32 [max_length], the first `length` of them valid: prompt, then what was generated.
    max_length: number of tokens at which the sequence ends with "length".
    held: its blocks in every cache group; `room`: for how many tokens it has blocks in all of them.
    block_size: tokens of a block, in every group.
    embed: the request, if it is for a vector: then nothing is chosen, and it ends with its prompt.
    routed: how many of its tokens' experts have been told before.
    root: digest of everything but tokens that changes keys and values; the digests of blocks start from
    it, so only sequences of one root share blocks.

    Steps are planned before the one at hand is computed, so two counts look ahead to when all that
    is planned has been computed: `expected` tokens are known then, `length` or one more, and
    `num_computed` of them have their keys and values in the blocks.
    """

    def __init__(
        self,
        *,
        id: str,
        prompt: list[int],
        generated: list[int],
        params: SamplingParams,
        stop_ids: frozenset[int],
        max_length: int,
        block_size: int,
        held: list[Held],
        scored: int = 0,
        routed: int = 0,
        root: bytes = ROOT_DIGEST,
        grammar: Grammar | None = None,
        embed: Embed | None = None,
    ) -> None:
        self.id = id
        self.embed = embed
        self.params = params
        self.sampling = SamplingState(params, prompt, generated, stop_ids, grammar)
        self.num_prompt = len(prompt)
        self.length = len(prompt) + len(generated)
        self.expected = self.length
        self.max_length = max_length
        self.block_size = block_size
        self.tokens: NDArray[np.int32] = np.empty(max(max_length, self.length), np.int32)
        self.tokens[: self.num_prompt] = prompt
        self.tokens[self.num_prompt : self.length] = generated
        self.last_token = int(self.tokens[self.length - 1])
        """The newest token. Set where it is chosen, possibly before `append`."""
        self.generates = max_length > self.num_prompt
        """False if it ends with its prompt."""
        self.num_scored = self.num_prompt - 1 if params.prompt_logprobs is None or generated else scored
        """How many of the prompt's tokens after the first have been scored, or need not be."""
        self.is_routed = params.routed_from is not None
        """Whether it is told which experts its tokens chose."""
        self.num_routed = (params.routed_from or 0) + routed
        """The first token whose experts are wanted and not known yet."""
        self._routes: list[bytes] = []
        self.held = held
        self.room = 0
        self.num_computed = 0
        self.jumped = 1
        """How many of its newest tokens it may compute at once as decoding sequences do: more than one after a jump."""
        self.num_published = 0
        """How many blocks of each group have been offered for reuse. Set anew when the sequence is admitted."""
        self.cached_tokens: int | None = None
        """Prompt tokens found in the cache when the sequence was first admitted, None before that."""
        self.arrival = 0
        """Place in the order of arrival, given by the scheduler."""
        self._root = root
        self._digests: list[bytes] = []

    @property
    def num_cached(self) -> int:
        """Prompt tokens that did not have to be computed, as they are told."""
        return min(self.cached_tokens or 0, self.num_prompt)

    @property
    def left(self) -> int:
        """Known tokens that are not computed yet."""
        return self.expected - self.num_computed

    @property
    def scores(self) -> bool:
        """Whether tokens of its prompt are still to be scored."""
        return self.num_scored < self.num_prompt - 1

    @property
    def first_wanted(self) -> int:
        """The first token whose row of logits somebody needs."""
        return self.num_scored if self.scores else self.expected - 1

    @property
    def first_computed(self) -> int:
        """The first token that is computed in any case: its keys and values may not be found in a cache."""
        return min(self.first_wanted, self.num_routed) if self.is_routed else self.first_wanted

    @property
    def first_row(self) -> int:
        """The first token that gets a row of logits when the next ones are computed."""
        return max(self.num_computed, self.first_wanted)

    @property
    def fills(self) -> bool:
        """Whether more has to be computed than the token that was chosen last."""
        return self.left > 1 or (self.left == 1 and not self.generates)

    def append(self, token: int) -> None:
        """Take the chosen token as the last one."""
        self.tokens[self.length] = token
        self.length += 1

    def keep_routes(self, start: int, routes: NDArray[Any]) -> None:
        """What computed tokens from `start` on chose, [tokens, layers, chosen]: those that are not known yet are kept."""
        assert start <= self.num_routed, "the experts of a token were never told"
        new = routes[self.num_routed - start :]
        self._routes += [token.tobytes() for token in new]
        self.num_routed += len(new)

    def take_routes(self) -> list[bytes]:
        """What has been kept since the last time."""
        taken, self._routes = self._routes, []
        return taken

    @property
    def known_digests(self) -> list[bytes]:
        """Content names of blocks that `digests` has been asked for so far."""
        return self._digests

    def digests(self, count: int) -> list[bytes]:
        """Content names of the first `count` blocks, which must be full of known tokens."""
        known = len(self._digests)
        if count > known:
            size = 4 * self.block_size
            raw = self.tokens[known * self.block_size : count * self.block_size].tobytes()
            parent = self._digests[-1] if known else self._root
            for start in range(0, len(raw), size):
                parent = block_digest(parent, raw[start : start + size])
                self._digests.append(parent)
        return self._digests[:count]

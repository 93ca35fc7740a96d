"""One request while it is being computed."""

import numpy as np
from numpy.typing import NDArray

from ..protocol import SamplingParams
from .caches.blocks import ROOT_DIGEST, block_digest
from .sampling.state import SamplingState


class Sequence:
    """Tokens of one request, how many of them are in the KV cache, and in which blocks.

    tokens: int32 [max_length], the first `length` of them valid: prompt, then what was generated.
    max_length: number of tokens at which the sequence ends with "length".
    blocks: the blocks held, in the order of the tokens; `table` has them as int32. The list only
    grows until they are dropped, and then there is a new one.
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
        root: bytes = ROOT_DIGEST,
    ) -> None:
        self.id = id
        self.params = params
        self.sampling = SamplingState(params, prompt, generated, stop_ids)
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
        self.blocks: list[int] = []
        self.table: NDArray[np.int32] = np.empty(-(-len(self.tokens) // block_size), np.int32)
        self.num_computed = 0
        self.num_published = 0
        """How many of the blocks have been offered for reuse. Set anew when the sequence is admitted."""
        self.cached_tokens: int | None = None
        """Prompt tokens found in the cache when the sequence was first admitted, None before that."""
        self._root = root
        self._digests: list[bytes] = []

    def append(self, token: int) -> None:
        """Take the chosen token as the last one."""
        self.tokens[self.length] = token
        self.length += 1

    def add_blocks(self, blocks: list[int]) -> None:
        held = len(self.blocks)
        self.table[held : held + len(blocks)] = blocks
        self.blocks += blocks

    def drop_blocks(self) -> list[int]:
        """Forget everything computed; returns the blocks, for the caller to release."""
        blocks, self.blocks = self.blocks, []
        self.num_computed = 0
        return blocks

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

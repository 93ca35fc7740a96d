"""One request while it is being computed."""

import numpy as np
from numpy.typing import NDArray

from ..protocol import SamplingParams
from .blocks import ROOT_DIGEST, block_digest
from .sampling_state import SamplingState


class Sequence:
    """Tokens of one request, how many of them are in the KV cache, and in which blocks.

    tokens: int32 [max_length], the first `length` of them valid: prompt, then what was generated.
    num_computed: how many tokens' keys and values lie in the cache; they fill `table` in order.
    table: int32, the first `num_blocks` entries are the blocks held.
    max_length: number of tokens at which the sequence ends with "length".
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
    ) -> None:
        self.id = id
        self.params = params
        self.sampling = SamplingState(params, prompt, generated, stop_ids)
        self.num_prompt = len(prompt)
        self.length = len(prompt) + len(generated)
        self.max_length = max_length
        self.block_size = block_size
        self.tokens: NDArray[np.int32] = np.empty(max(max_length, self.length), np.int32)
        self.tokens[: self.num_prompt] = prompt
        self.tokens[self.num_prompt : self.length] = generated
        self.last_token = int(self.tokens[self.length - 1])
        self.table: NDArray[np.int32] = np.empty(-(-len(self.tokens) // block_size), np.int32)
        self.num_blocks = 0
        self.num_computed = 0
        self.num_published = 0
        """How many of the blocks have been offered for reuse. Set anew when the sequence is admitted."""
        self.cached_tokens: int | None = None
        """Prompt tokens found in the cache when the sequence was first admitted, None before that."""
        self._digests: list[bytes] = []

    @property
    def remaining(self) -> int:
        """Tokens that must be computed before the next one can be chosen. 1 while decoding."""
        return self.length - self.num_computed

    @property
    def blocks(self) -> list[int]:
        """The blocks held, in the order of the tokens."""
        held: list[int] = self.table[: self.num_blocks].tolist()
        return held

    def append(self, token: int) -> None:
        """Take the chosen token as the last one."""
        self.tokens[self.length] = token
        self.length += 1
        self.last_token = token
        self.sampling.record(token)

    def add_blocks(self, blocks: list[int]) -> None:
        end = self.num_blocks + len(blocks)
        self.table[self.num_blocks : end] = blocks
        self.num_blocks = end

    def drop_blocks(self) -> list[int]:
        """Forget everything computed; returns the blocks, for the caller to release."""
        blocks = self.blocks
        self.num_blocks = self.num_computed = 0
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
            parent = self._digests[-1] if known else ROOT_DIGEST
            for start in range(0, len(raw), size):
                parent = block_digest(parent, raw[start : start + size])
                self._digests.append(parent)
        return self._digests[:count]

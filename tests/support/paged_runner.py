"""Runs a `Decoder` eagerly over a paged cache, with the attention operator's reference in place of its kernel."""

from collections.abc import Sequence

import torch

from engine.models.decoder import Decoder

BLOCK_SIZE = 16


class PagedRunner:
    """Sequences in scattered blocks of one cache that is full of NaN where nothing was written."""

    def __init__(self, decoder: Decoder, *, blocks: int = 24, blocks_per_sequence: int = 6, seed: int = 0) -> None:
        config = decoder.config
        self.decoder = decoder
        shape = (blocks, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
        dtype = decoder.norm.weight.dtype
        self.caches = [(torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype)) for _ in config.layers]
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed))
        self.tables = order[: blocks // blocks_per_sequence * blocks_per_sequence].view(-1, blocks_per_sequence)
        self.lengths = [0] * len(self.tables)

    @torch.no_grad()
    def step(self, pieces: Sequence[tuple[int, Sequence[int]]]) -> torch.Tensor:
        """Appends to each (sequence, new tokens) and returns the logits after each, [len(pieces), V]."""
        tokens, positions, slots, starts, lengths = [], [], [], [0], []
        for sequence, new in pieces:
            begin = self.lengths[sequence]
            self.lengths[sequence] = begin + len(new)
            tokens += list(new)
            for position in range(begin, begin + len(new)):
                positions.append(position)
                slots.append(int(self.tables[sequence, position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE)
            starts.append(len(tokens))
            lengths.append(self.lengths[sequence])
        tables = self.tables[[sequence for sequence, _ in pieces]].to(torch.int32)
        tokens_T, positions_T, query_start, seq_lens, slots_T = (
            torch.tensor(values, dtype=torch.int32) for values in (tokens, positions, starts, lengths, slots)
        )
        logits: torch.Tensor = self.decoder(tokens_T, positions_T, query_start, seq_lens, tables, slots_T, self.caches)
        return logits

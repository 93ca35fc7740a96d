"""Runs a `Decoder` eagerly over paged caches, with the attention operator's reference in place of its kernel."""

from collections.abc import Sequence

import torch

from engine.artifacts.step_arrays import Piece, step_arrays
from engine.models.cache_groups import cache_groups
from engine.models.decoder import Decoder
from engine.models.step import Step

BLOCK_SIZE = 16


class PagedRunner:
    """Sequences in scattered blocks of caches that are full of NaN where nothing was written."""

    def __init__(self, decoder: Decoder, *, blocks: int = 24, blocks_per_sequence: int = 6, seed: int = 0) -> None:
        self.decoder = decoder
        spec, dtype = decoder.spec, decoder.embed.weight.dtype
        self.caches: list[tuple[torch.Tensor, ...]] = []
        for layer in spec.layers:
            if layer.mixer.source is not None:
                self.caches.append(self.caches[layer.mixer.source])
                continue
            shape = (blocks, layer.mixer.num_kv_heads, BLOCK_SIZE, layer.mixer.head_dim)
            self.caches.append(tuple(torch.full(shape, torch.nan, dtype=dtype) for _ in layer.mixer.cache_parts))
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed))
        self.tables = order[: blocks // blocks_per_sequence * blocks_per_sequence].view(-1, blocks_per_sequence)
        self.block_sizes = {group.name: BLOCK_SIZE for group in cache_groups(spec)}
        self.tokens: list[list[int]] = [[] for _ in self.tables]

    @torch.no_grad()
    def step(self, pieces: Sequence[tuple[int, Sequence[int]]], *, every_row: bool = False) -> torch.Tensor:
        """Appends to each (sequence, new tokens) and returns the logits after each, [len(pieces), V]; of every token, [T, V]."""
        parts = []
        for sequence, new in pieces:
            begin = len(self.tokens[sequence])
            self.tokens[sequence] += new
            wanted = range(begin, len(self.tokens[sequence])) if every_row else None
            parts.append(Piece(self.tokens[sequence], begin, dict.fromkeys(self.block_sizes, self.tables[sequence].tolist()), wanted))
        step = Step.of({name: torch.from_numpy(array) for name, array in step_arrays(parts, self.block_sizes).items()})
        logits: torch.Tensor = self.decoder(step, self.caches)
        return logits

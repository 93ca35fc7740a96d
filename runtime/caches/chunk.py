"""Layers whose tokens see the tokens of their own chunk: those since the last position that is a multiple of `window`."""

from .window import WindowCache


class ChunkCache(WindowCache):
    """As a window that begins anew with every chunk: at its first token, nothing of the sequence is needed."""

    def first_seen(self, position: int) -> int:
        return position // self.group.window * self.group.window

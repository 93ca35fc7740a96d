"""Stop strings over token boundaries."""

from collections.abc import Sequence


class StopChecker:
    """Cuts a text at the first stop string to become complete, however the text is split.

    Only what might still grow into a stop string is held back. Of stop strings that end at
    the same character the longest wins. `include` keeps the stop string in the text.
    Text that no reader sees, that of special tokens, completes stop strings too.
    found: the stop string that ended the text.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self._unseen: list[tuple[int, int]] = []
        self.found: str | None = None

    def push(self, piece: str, *, seen: bool = True) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was found (the text ends there)."""
        if not self._stops:
            return piece if seen else "", False
        text = self._held + piece
        if not seen:
            self._unseen.append((len(self._held), len(text)))
        if match := self._first_match(text):
            start, end = match
            self._held = ""
            self.found = text[start:end]
            return self._shown(text[:start]) + (text[start:end] if self._include else ""), True
        shown = len(text) - self._possible_prefix(text)
        piece, self._held = self._shown(text[:shown]), text[shown:]
        self._unseen = [(max(start - shown, 0), end - shown) for start, end in self._unseen if end > shown]
        return piece, False

    def flush(self) -> str:
        """What was held back, once it is known that nothing follows."""
        held = self._shown(self._held)
        self._held, self._unseen = "", []
        return held

    def _shown(self, text: str) -> str:
        """What a reader sees of the beginning of what is held."""
        for start, end in reversed(self._unseen):
            text = text[:start] + text[end:]
        return text

    def _first_match(self, text: str) -> tuple[int, int] | None:
        starts = ((text.find(stop), stop) for stop in self._stops)
        matches = [(start + len(stop), start) for start, stop in starts if start >= 0]
        if not matches:
            return None
        end, start = min(matches)
        return start, end

    def _possible_prefix(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = 0
        for stop in self._stops:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while start >= 0:
                if stop.startswith(text[start:]):
                    longest = max(longest, len(text) - start)
                    break
                start = text.find(stop[0], start + 1)
        return longest

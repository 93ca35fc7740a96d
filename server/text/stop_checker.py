"""Stop strings over token boundaries."""

from collections.abc import Sequence


class StopChecker:
    """Cuts a text at the first stop string to become complete, however the text is split.

    Only what might still grow into a stop string is held back. Of stop strings that end at
    the same character the longest wins. `include` keeps the stop string in the text.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was found (the text ends there)."""
        if not self._stops:
            return piece, False
        text = self._held + piece
        if match := self._first_match(text):
            start, end = match
            self._held = ""
            return text[: end if self._include else start], True
        shown = len(text) - self._possible_prefix(text)
        self._held = text[shown:]
        return text[:shown], False

    def flush(self) -> str:
        """What was held back, once it is known that nothing follows."""
        held, self._held = self._held, ""
        return held

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

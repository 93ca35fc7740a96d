"""What a sequence's tokens must follow. llguidance keeps the state, which is a function of the grammar and the tokens so far."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Grammar:
    """Where one sequence stands in its grammar.

    denied: bool [V], the tokens that may not come next; `fill` writes it, and may run in another thread while the
    step is computed. error: why the matcher gave up; the grammar allows nothing then.
    """

    def __init__(self, matcher: "LLMatcher", vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._is_filled = False
        self.denied: NDArray[np.bool_] = np.zeros(vocab_size, np.bool_)

    @property
    def error(self) -> str | None:
        if not self._matcher.is_error():
            return None
        return f"the grammar cannot be followed any further: {_first_line(self._matcher.get_error())}\nhint: make it simpler"

    @property
    def has_ended(self) -> bool:
        """Whether only the end of the text may follow."""
        return self._matcher.is_stopped()

    def fill(self) -> None:
        """Find out which tokens may come next. Other threads run meanwhile."""
        if self._is_filled:
            return
        allowed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self.denied = np.unpackbits(~allowed, count=self._vocab_size, bitorder="little").view(np.bool_)
        self._is_filled = True

    def accept(self, token: int) -> None:
        """The next token is this one."""
        self._matcher.consume_token(token)
        self._is_filled = False

    def forced(self) -> int | None:
        """The next token if no other may come."""
        expected = self._matcher.compute_ff_tokens()
        if not expected:  # which is known at once, a mask is not
            return None
        self.fill()
        token: int = expected[0]
        return token if np.count_nonzero(self.denied) == self._vocab_size - 1 and not self.denied[token] else None


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]

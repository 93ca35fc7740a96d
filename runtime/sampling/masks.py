"""Fills the masks of a step's sequences while the step is computed."""

import threading
from collections.abc import Iterable
from queue import SimpleQueue

from .grammar import Grammar
from .state import SamplingState


class Masks:
    """One thread, started by the first sequence that has a grammar."""

    def __init__(self) -> None:
        self._wanted: SimpleQueue[list[Grammar]] = SimpleQueue()
        self._done: SimpleQueue[Exception | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pending = False

    def begin(self, states: Iterable[SamplingState]) -> None:
        """Fill those of these sequences that have a grammar. Followed by one `wait`."""
        grammars = [state.grammar for state in states if state.grammar is not None]
        self._pending = bool(grammars)
        if not grammars:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="masks", daemon=True)
            self._thread.start()
        self._wanted.put(grammars)

    def wait(self) -> None:
        """Until all are filled."""
        if self._pending and (error := self._done.get()) is not None:
            raise error

    def _run(self) -> None:
        while True:
            grammars = self._wanted.get()
            try:
                for grammar in grammars:
                    grammar.fill()
                self._done.put(None)
            except Exception as error:
                self._done.put(error)

"""Computes steps in a thread of its own, so that the next can be prepared and the last be told meanwhile."""

import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from ..step import Computed, Step


class Pipeline:
    """A line of steps: one that is being computed, and one that is begun the moment it is done.

    deliver: is handed the result of each step in their order, or what computing it raised. After
    a result that `surprises`, no step is begun until `go_on`: the next may have to be taken back.
    Use it in a `with` block, whose end waits for the step at hand.
    """

    def __init__(self, compute: Callable[[Step], Computed], deliver: Callable[[Computed | Exception], None]) -> None:
        self._compute = compute
        self._deliver = deliver
        self._steps: deque[Step] = deque()
        self._tickets: SimpleQueue[bool] = SimpleQueue()
        """One for each step that may be begun; who has taken it may take a step. False: there will be no more."""
        self._may_go_on = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.take_back()
        self._tickets.put(False)
        self._may_go_on.release()
        self._thread.join()

    def put(self, step: Step) -> None:
        """Compute this step next."""
        self._steps.append(step)
        self._tickets.put(True)

    def take_back(self) -> bool:
        """Remove the step put last. False if it has been begun."""
        try:
            self._tickets.get_nowait()
        except Empty:
            return False
        self._steps.pop()
        return True

    def go_on(self) -> None:
        self._may_go_on.release()

    def _run(self) -> None:
        while self._tickets.get():
            result = self._result_of(self._steps.popleft())
            self._deliver(result)
            if isinstance(result, Exception) or result.surprises:
                self._may_go_on.acquire()

    def _result_of(self, step: Step) -> Computed | Exception:
        try:
            return self._compute(step)
        except Exception as error:
            return error

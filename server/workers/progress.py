"""Whether a worker that has work goes on with it: a process that hangs neither exits nor closes its socket."""

import time

from ...protocol import Stats

STEPS = 3
LEAST_SECONDS = 10.0
SECONDS_OF_THE_FIRST_STEP = 120.0


class Progress:
    """The steps of one worker, how many they are, and when it last went on.

    A step may be no longer than a few of the longest that are to be expected: of the longest so far, or of a full one at the least
    time per token so far, since no token is cheaper alone.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._last = time.monotonic()
        self._longest = 0.0
        self._per_token: float | None = None

    def begin(self) -> None:
        """The worker was idle and has work from now on."""
        self._last = time.monotonic()

    def step(self, stats: Stats) -> None:
        """The worker has told of a step."""
        self.steps += 1
        self._last = time.monotonic()
        self._longest = max(self._longest, stats.step_seconds)
        per_token = stats.step_seconds / max(1, stats.step_tokens)
        self._per_token = per_token if self._per_token is None else min(per_token, self._per_token)

    def seconds(self) -> float:
        """Since the worker last went on."""
        return time.monotonic() - self._last

    def is_stalled(self, *, max_batch_tokens: int) -> bool:
        """Whether it is too long since, if there is work."""
        if self._per_token is None:
            return self.seconds() > SECONDS_OF_THE_FIRST_STEP
        return self.seconds() > max(LEAST_SECONDS, STEPS * max(self._longest, self._per_token * max_batch_tokens))

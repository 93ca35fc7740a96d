"""When a worker that has work is held to hang."""

import pytest

from engine.protocol import Stats
from engine.server.workers import progress
from engine.server.workers.progress import LEAST_SECONDS, SECONDS_OF_THE_FIRST_STEP, Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def stalls_after(clock: Clock, *steps: tuple[int, float]) -> float:
    """Seconds, for a worker that has done these steps of so many tokens and seconds, and takes 100 tokens in one."""
    worker = Progress()
    for tokens, seconds in steps:
        clock.now += seconds
        worker.step(Stats(step_tokens=tokens, step_seconds=seconds))
    begin = clock.now
    while not worker.is_stalled(max_batch_tokens=100):
        clock.now += 0.125
    return clock.now - begin


@pytest.mark.parametrize(
    ("steps", "seconds"),
    [
        ([], SECONDS_OF_THE_FIRST_STEP),
        ([(1, 0.001)], LEAST_SECONDS),
        ([(1, 0.001), (100, 8.0)], 24.0),  # three times the longest
        ([(1, 0.5)], 150.0),  # a full step has not been seen, and may take a hundred times as long
        ([(1, 0.5), (50, 5.0)], 30.0),  # which half of one says better
        ([(50, 5.0), (1, 0.5)], 30.0),
    ],
)
def test_a_few_times_as_long_as_a_step_may_take(clock: Clock, steps: list[tuple[int, float]], seconds: float) -> None:
    assert stalls_after(clock, *steps) == pytest.approx(seconds, abs=0.2)


def test_work_that_begins_after_a_pause_counts_from_then(clock: Clock) -> None:
    worker = Progress()
    worker.step(Stats(step_tokens=1, step_seconds=0.001))
    clock.now += 1000
    worker.begin()
    assert not worker.is_stalled(max_batch_tokens=100)
    assert worker.seconds() == 0

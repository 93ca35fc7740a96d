"""How long tests wait for what comes at once on a machine with nothing else to do."""

import time
from collections.abc import Callable

PATIENCE = 240.0
"""Seconds. Only something that hangs may use them up, and pytest's own limit for a test is longer."""


def wait_until(condition: Callable[[], object]) -> None:
    """Until it holds. Raises AssertionError when patience ends."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not in {PATIENCE:.0f} s"
        time.sleep(0.01)

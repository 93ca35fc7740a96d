"""How long a graph takes on the GPU, by its own clock: launches one after another, with an event between each two."""

import ctypes
from contextlib import ExitStack
from itertools import pairwise

from .device import Device, Resource

WARM_UP = 3
"""Launches before those that count: the first ones load code and wake the GPU's clocks."""


def graph_seconds(device: Device, stream: Resource, graph: int, launches: int) -> list[float]:
    """Seconds of each of `launches` launches. Raises DeviceError if one fails.

    graph: what `cuGraphLaunch` takes. The GPU never waits for this process, as in a server whose
    next step is planned while the last one runs: what a launch itself costs is counted as far as
    the GPU sees it.
    """
    driver, elapsed = device.driver, ctypes.c_float()
    with ExitStack() as held:
        events = [held.enter_context(device.event(timing=True)) for _ in range(launches + 1)]
        for _ in range(WARM_UP):
            driver.call("cuGraphLaunch", graph, stream.handle)
        driver.call("cuEventRecord", events[0].handle, stream.handle)
        for event in events[1:]:
            driver.call("cuGraphLaunch", graph, stream.handle)
            driver.call("cuEventRecord", event.handle, stream.handle)
        driver.call("cuEventSynchronize", events[-1].handle)
        seconds = []
        for before, after in pairwise(events):
            driver.call("cuEventElapsedTime", ctypes.byref(elapsed), before.handle, after.handle)
            seconds.append(elapsed.value / 1000)
        return seconds

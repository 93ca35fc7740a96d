"""The worker of a server, among whatever else it runs: the check of the weights is a process of its own too."""

import psutil


def worker_of(server: int) -> psutil.Process:
    """server: its process id."""
    (worker,) = [child for child in psutil.Process(server).children() if "engine.runtime.process.worker" in child.cmdline()]
    return worker

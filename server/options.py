"""What the server is told at start. No imports beyond the standard library: it is read before anything is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

WeightsCheck = Literal["before", "background", "off"]


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How a worker is started. None leaves a choice to the worker. kv_memory is in bytes.

    digest: of the artifact that alone may be loaded. verify_weights: when their digests are compared;
    a worker by itself does it before it is ready, or not.
    worker_command replaces the command before the flags, for a worker that is not the built-in one.
    """

    artifacts: Path
    threads: int | None = None
    kv_memory: int | None = None
    max_num_seqs: int | None = None
    max_batch_tokens: int | None = None
    digest: str | None = None
    verify_weights: WeightsCheck = "off"
    worker_command: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ServeOptions(WorkerOptions):
    """Options of `engine serve`. Times are in seconds; port 0 picks a free one.

    max_queue: requests that may wait beyond those running, before clients are told to come back.
    hold_timeout: how long a request may wait for a worker that is still loading.
    drain_timeout: how long running requests may go on after SIGTERM.
    verify_key: PEM file with the public key of those whose artifacts are served, and no others.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    served_model_name: str | None = None
    max_queue: int = 256
    hold_timeout: float = 60.0
    drain_timeout: float = 30.0
    verify_weights: WeightsCheck = "background"
    verify_key: Path | None = None

"""What `engine bench serve` measured, as its JSON file has it."""

import msgspec

from .metrics import Summary


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run. server_cpu_s: used by server and worker, None for a server that we did not start."""

    summary: Summary
    server_cpu_s: float | None
    client_cpu_s: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One load: so many clients, or so many requests per second."""

    concurrency: int | None
    rate: float | None
    runs: list[Run]


class ServeResults(msgspec.Struct, frozen=True, kw_only=True):
    """peak_rss_bytes: server and worker together over all rows, None for a server that we did not start."""

    model: str
    rows: list[Row]
    peak_rss_bytes: int | None

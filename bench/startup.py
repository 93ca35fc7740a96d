"""From exec to the first token over HTTP: `engine serve` against `python -c "import torch"`.

The two take turns, so that a slow minute of the machine slows both.
"""

import http.client
import json
import statistics
import subprocess
import sys
import time

import msgspec

from .engine_server import LIMIT_S, EngineServer
from .options import Startup, settings
from .provenance import provenance
from .report import Report, Spread, Table


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from exec until the port was open and until the first token had arrived; seconds per phase."""

    listening: float
    first_token: float
    phases: dict[str, float]


class StartupResults(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of every counted run. ratio: of the medians, first token over import."""

    import_torch: list[float]
    engine_serve: list[Start]
    ratio: float


def measure(options: Startup) -> Report:
    """Start the server `runs` times, and once before. Raises WorkerError if it does not start or answer."""
    facts = provenance(options.artifacts)
    imports, starts = [], []
    for _ in range(options.runs + 1):
        imports.append(import_torch())
        starts.append(start(options))
    imports, starts = imports[1:], starts[1:]
    ratio = statistics.median(run.first_token for run in starts) / statistics.median(imports)
    results = StartupResults(import_torch=imports, engine_serve=starts, ratio=ratio)
    return Report(benchmark="startup", tables=_tables(results), settings=settings(options), results=results, provenance=facts)


def import_torch() -> float:
    """Seconds that a Python process takes to import torch and exit."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-c", "import torch"], check=True)
    return time.perf_counter() - begin


def start(options: Startup) -> Start:
    """Start a server, ask for one token as soon as it listens, stop it."""
    with EngineServer(options.artifacts, options.serve_arguments) as server:
        server.wait_until_listening()
        listening = server.seconds()
        _first_token(server)
        return Start(listening=listening, first_token=server.seconds(), phases=server.phases())


def _first_token(server: EngineServer) -> None:
    """Returns when the first event of a stream has arrived. The server holds the request while its worker loads."""
    body = {"prompt": "Once upon a time", "max_tokens": 1, "temperature": 0, "ignore_eos": True, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        line = response.readline()
        if response.status != 200 or not line.startswith(b"data:"):
            raise server.failed(f"answer: HTTP {response.status} {(line + response.read()).decode(errors='replace').strip()}")
    except (OSError, http.client.HTTPException) as error:
        raise server.failed(f"answer: {error!r}") from error
    finally:
        connection.close()


def _tables(results: StartupResults) -> list[Table]:
    starts = results.engine_serve
    rows = [
        ("import torch", Spread.of(results.import_torch).show(digits=2)),
        ("engine serve, listening", Spread.of([run.listening for run in starts]).show(digits=2)),
        ("engine serve, first token", Spread.of([run.first_token for run in starts]).show(digits=2)),
        ("first token / import", f"{results.ratio:.2f}"),
    ]
    phases = [(name, Spread.of([run.phases.get(name, 0.0) for run in starts]).show(digits=3)) for name in starts[0].phases]
    title = f"From exec, seconds: median (range) of {len(starts)} starts"
    return [
        Table(title=title, columns=("", "s"), rows=rows),
        Table(title="Phases, which run beside each other", columns=("", "s"), rows=phases),
    ]

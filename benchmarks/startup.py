"""From exec to the first token: `engine serve` against `python -c "import torch"`.

    python benchmarks/startup.py --artifacts DIR [--runs N] [--json FILE]

The two are run in turns, so that a slow minute of the machine slows both; medians are compared.
One run of each comes first and is not counted: it warms the page cache. Reports, judges nothing.
"""

import argparse
import http.client
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

ENGINE = Path(sys.executable).with_name("engine")
PHASE = re.compile(r'engine_startup_phase_seconds\{phase="([^"]+)"\} (\S+)')
LIMIT_S = 120.0
POLL_S = 0.005


@dataclass(frozen=True, kw_only=True)
class Start:
    """Seconds from exec until the port was open and until the first token arrived; seconds per phase."""

    listening: float
    first_token: float
    phases: dict[str, float]


def import_torch() -> float:
    """Seconds that a Python process takes to import torch and exit."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-c", "import torch"], check=True)
    return time.perf_counter() - begin


def start(artifacts: Path, arguments: list[str]) -> Start:
    """Start a server, ask for one token as soon as it listens, stop it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [str(ENGINE), "serve", "--artifacts", str(artifacts), "--port", str(port), *arguments]
    begin = time.perf_counter()
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until_listening(server, port, begin + LIMIT_S)
        listening = time.perf_counter() - begin
        first_token(port)
        done = time.perf_counter() - begin
        phases = {name: float(seconds) for name, seconds in PHASE.findall(metrics(port))}
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)
    finally:
        server.kill()
        server.wait()
    return Start(listening=listening, first_token=done, phases=phases)


def wait_until_listening(server: "subprocess.Popen[bytes]", port: int, deadline: float) -> None:
    while time.perf_counter() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(POLL_S)
        else:
            return
    sys.exit("the server did not open its port")


def first_token(port: int) -> None:
    """Returns when the first event of a stream has arrived. The server holds the request while its worker loads."""
    body = {"prompt": "Once upon a time", "max_tokens": 1, "temperature": 0, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    line = response.readline()
    if response.status != 200 or not line.startswith(b"data:"):
        sys.exit(f"no token: HTTP {response.status} {(line + response.read()).decode()}")
    connection.close()


def metrics(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def provenance(artifacts: Path) -> dict[str, object]:
    """What the figures belong to: machine, versions, commit, artifact."""
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": version("torch"),
        "engine": version("engine-llm"),
        "commit": commit,
        "artifacts": artifacts.name,
    }


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f} s   ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, required=True, metavar="DIR")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run, with provenance, to FILE")
    parser.add_argument("serve_arguments", nargs="*", metavar="ARGUMENT", help="after --: further arguments of engine serve")
    options = parser.parse_args()

    imports: list[float] = []
    starts: list[Start] = []
    for _ in range(options.runs + 1):
        imports.append(import_torch())
        starts.append(start(options.artifacts, options.serve_arguments))
    imports, starts = imports[1:], starts[1:]

    facts = provenance(options.artifacts)
    ratio = statistics.median(run.first_token for run in starts) / statistics.median(imports)
    print("\n".join(f"{name:>12}  {value}" for name, value in facts.items()), end="\n\n")
    print(f"import torch              {spread(imports)}")
    print(f"engine serve, listening   {spread([run.listening for run in starts])}")
    print(f"engine serve, first token {spread([run.first_token for run in starts])}")
    print(f"first token / import      {ratio:6.2f}\n\nphases, median of {options.runs} runs")
    for name in starts[0].phases:
        print(f"  {name:<24}{statistics.median(run.phases.get(name, 0.0) for run in starts):6.3f} s")
    if options.json:
        report = {"provenance": facts, "import_torch": imports, "engine_serve": [asdict(run) for run in starts], "ratio": ratio}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

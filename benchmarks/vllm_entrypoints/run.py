"""vLLM's tests of its HTTP APIs against `engine serve`: how many pass, and why the others do not.

    python benchmarks/vllm_entrypoints/run.py ARTIFACT [--calling ARTIFACT] [--only PATTERN] [--json FILE]

The tests come from vLLM's source distribution, fetched by pip, and run unchanged: `stand_in.py` stands for
vLLM. ARTIFACT is a chat model for this machine; --calling: one that calls tools, for servers that parse calls
or reasoning. Only tests that ask a server are run. Every other one has its reason in `reasons.json`, a list of
[pattern of test ids, reason]; those whose reason begins with "not applicable" are not run. Exits 1 if a test
fails that has no reason.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from engine.bench.provenance import provenance

HERE = Path(__file__).parent
VLLM = "vllm==0.33.0"
PLUGIN = "pytest-asyncio==1.5.0"
FOLDERS = ("openai", "anthropic", "serve/tokenize", "serve/instrumentator")
"""Of vLLM's tests/entrypoints."""
PARTS = ("tests/__init__.py", "tests/entrypoints/__init__.py", "tests/entrypoints/conftest.py", "tests/entrypoints/serve/__init__.py")
SKIPPED = "not applicable"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
TEST_LIMIT_S = 120


def fetch(directory: Path) -> None:
    """Unpacks the tests into directory/tests. pip only says where the source distribution is: to download it, it would build it."""
    name = f"{VLLM.replace('==', '-')}.tar.gz"
    listing = [sys.executable, "-m", "pip", "index", "versions", "-vv", "--no-binary", "vllm", "vllm"]
    links = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    link = re.search(rf"\S+/{re.escape(name)}", links)
    if link is None:
        sys.exit(f"error: pip's index has no {name}\nhint: --sdist takes a file that is there already")
    path, _ = urllib.request.urlretrieve(link[0], directory / name)
    unpack(Path(path), directory)


def unpack(archive: Path, directory: Path) -> None:
    folders = tuple(f"tests/entrypoints/{folder}/" for folder in FOLDERS)
    with tarfile.open(archive) as sources:
        for member in sources:
            member.name = member.name.partition("/")[2]
            if member.isfile() and (member.name in PARTS or member.name.startswith(folders)):
                sources.extract(member, directory, filter="data")


def run(directory: Path, artifact: Path, calling: Path, only: str | None, reasons: list[tuple[str, str]]) -> dict[str, Any]:
    """What `stand_in.Outcomes` says of the tests."""
    plugin = directory / "plugin"
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(plugin), PLUGIN], check=True)
    report = directory / "report.json"
    skipped = [pattern for pattern, reason in reasons if reason.startswith(SKIPPED)]
    settings = {"artifact": str(artifact), "calling": str(calling), "report": str(report), "skipped": skipped, "only": only}
    environment = os.environ | {
        "ENTRYPOINTS": json.dumps(settings),
        "PYTHONPATH": os.pathsep.join([str(HERE), str(plugin)]),
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
    }
    pytest = [sys.executable, "-m", "pytest", "-p", "stand_in", "-p", "pytest_asyncio", "-c", "/dev/null", "--rootdir", str(directory)]
    pytest += ["-q", "-W", "ignore", "--timeout", str(TEST_LIMIT_S), "--continue-on-collection-errors", "tests/entrypoints"]
    subprocess.run(pytest, cwd=directory, env=environment, check=False)
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def judged(found: dict[str, Any], reasons: list[tuple[str, str]]) -> dict[str, Any]:
    """Counts, and the tests that do not pass under their reasons; those without one under an empty one."""
    by_reason: dict[str, list[str]] = {}
    for test in [*found["skipped"], *(test for test, result in found["tests"].items() if result["outcome"] != "passed")]:
        reason = next((reason for pattern, reason in reasons if fnmatch(test, f"*{pattern}")), "")
        by_reason.setdefault(reason, []).append(test)
    counts = Counter(result["outcome"] for result in found["tests"].values())
    return {
        "passed": counts["passed"],
        "failed": counts["failed"],
        "skipped": counts["skipped"],
        "not applicable": len(found["skipped"]),
        "ask no server": len(found["without_server"]),
        "reasons": dict(sorted(by_reason.items(), key=lambda item: -len(item[1]))),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--calling", type=Path, help="an artifact that calls tools (default: the same)")
    parser.add_argument("--only", metavar="PATTERN", help="run the tests whose ids match")
    parser.add_argument("--sdist", type=Path, help="vLLM's source distribution (default: fetched by pip)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    reasons: list[tuple[str, str]] = [(pattern, reason) for pattern, reason in json.loads((HERE / "reasons.json").read_bytes())]
    artifact = options.artifact.resolve()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if options.sdist:
            unpack(options.sdist, directory)
        else:
            fetch(directory)
        found = run(directory, artifact, (options.calling or artifact).resolve(), options.only, reasons)
    result = judged(found, reasons)
    table = Table("tests", "why they do not pass")
    for reason, tests in result["reasons"].items():
        table.add_row(str(len(tests)), reason or "NO REASON: " + ", ".join(tests))
    console = Console()
    console.print(table)
    console.print({key: value for key, value in result.items() if key != "reasons"})
    if options.json:
        options.json.write_text(json.dumps({"provenance": msgspec.to_builtins(provenance()), "tests": VLLM, **result}, indent=2) + "\n")
    return 1 if "" in result["reasons"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""vLLM's tests of its HTTP APIs against `engine serve`: how many pass, and why the others do not.

    python benchmarks/vllm_entrypoints/run.py ARTIFACT [--reasoning ARTIFACT] [--smollm2 ARTIFACT] [--embedding CHECKPOINT]
        [--only PATTERN] [--json FILE]

The tests come from vLLM's source distribution, fetched by pip, and run unchanged: `stand_in.py` stands for
vLLM. ARTIFACT is a chat model for this machine that calls tools. --reasoning: one that reasons and has a token
that ends it (`reasoning_model.py` makes it), for servers that parse reasoning and no calls. --smollm2:
SmolLM2-135M-Instruct, for tests of its own tokenizer. --embedding: a directory of all-MiniLM-L6-v2, which is built
for each context that tests want, by itself and with a head of random weights as a cross-encoder; vectors and
scores are compared with transformers. Without it those tests fail.

Only tests that ask a server are run, of the folders of vLLM's tests/entrypoints that are about HTTP APIs for
texts, and of tests/tool_use. Every test that does not pass has its reason in `reasons.json`, a list of [pattern of
test ids, reason]; those whose reason begins with "not applicable" are not run. Exits 1 if a test fails that has no
reason.
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
FOLDERS = tuple(f"tests/entrypoints/{name}/" for name in ("openai", "anthropic", "cohere", "generate", "launchers", "pooling", "serve"))
FOLDERS += ("tests/entrypoints/tool_parsers/", "tests/tool_use/")
PARTS = (
    "tests/__init__.py",
    "tests/ci_envs.py",
    "tests/entrypoints/__init__.py",
    "tests/entrypoints/conftest.py",
    "tests/models/__init__.py",
    "tests/models/registry.py",
    "tests/models/utils.py",
    "tests/models/language/__init__.py",
    "tests/models/language/pooling/__init__.py",
    "tests/models/language/pooling/embed_utils.py",
    "tests/v1/__init__.py",
    "tests/v1/utils.py",
)
"""What the tests in FOLDERS import besides."""
SKIPPED = "not applicable"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
TEST_LIMIT_S = 120
CONTEXTS = {"embeds": ("100", "128", "256"), "ranks": ("100",)}
"""Which lengths the tests want of which kind of model of whole texts."""


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
    with tarfile.open(archive) as sources:
        for member in sources:
            member.name = member.name.partition("/")[2]
            if member.isfile() and (member.name in PARTS or member.name.startswith(FOLDERS)):
                sources.extract(member, directory, filter="data")


def pooled(checkpoint: Path, directory: Path) -> None:
    """Into directory: the checkpoints `embeds` and `ranks`, and an artifact of each for every one of its CONTEXTS."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    (directory / "embeds").symlink_to(checkpoint)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1)
    torch.nn.init.normal_(model.classifier.weight, std=0.1)  # so that scores of different pairs lie apart
    model.save_pretrained(directory / "ranks")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(directory / "ranks")
    for name, lengths in CONTEXTS.items():
        for length in lengths:
            build = [sys.executable, "-m", "engine", "build", str(directory / name), "-o", str(directory / f"{name}-{length}")]
            subprocess.run([*build, "--max-context", length], check=True)


def run(directory: Path, artifacts: dict[str, Path], only: str | None, reasons: list[tuple[str, str]]) -> dict[str, Any]:
    """What `stand_in.Outcomes` says of the tests. artifacts: by the names that it has for them."""
    plugin = directory / "plugin"
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(plugin), PLUGIN], check=True)
    report = directory / "report.json"
    skipped = [pattern for pattern, reason in reasons if reason.startswith(SKIPPED)]
    settings = {
        **{name: str(path) for name, path in artifacts.items()},
        "pooled": str(directory / "pooled"),
        "report": str(report),
        "skipped": skipped,
        "only": only,
    }
    environment = os.environ | {
        "ENTRYPOINTS": json.dumps(settings),
        "PYTHONPATH": os.pathsep.join([str(HERE), str(plugin)]),
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
    }
    pytest = [sys.executable, "-m", "pytest", "-p", "stand_in", "-p", "pytest_asyncio", "-c", "/dev/null", "--rootdir", str(directory)]
    pytest += [
        "-q",
        "-W",
        "ignore",
        "--timeout",
        str(TEST_LIMIT_S),
        "--continue-on-collection-errors",
        "tests/entrypoints",
        "tests/tool_use",
    ]
    subprocess.run(pytest, cwd=directory, env=environment, check=False)
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def judged(found: dict[str, Any], reasons: list[tuple[str, str]]) -> dict[str, Any]:
    """Counts, and the tests that do not pass under their reasons; those without one under an empty one."""
    by_reason: dict[str, list[str]] = {}
    failed = [test for test, result in found["tests"].items() if result["outcome"] != "passed"]
    for test in [*found["skipped"], *failed, *found["not_collected"]]:
        reason = next((reason for pattern, reason in reasons if fnmatch(test, f"*{pattern}")), "")
        by_reason.setdefault(reason, []).append(test)
    counts = Counter(result["outcome"] for result in found["tests"].values())
    return {
        "passed": counts["passed"],
        "failed": counts["failed"],
        "skipped": counts["skipped"],
        "not applicable": len(found["skipped"]),
        "files that cannot be imported": len(found["not_collected"]),
        "ask no server": len(found["without_server"]),
        "reasons": dict(sorted(by_reason.items(), key=lambda item: -len(item[1]))),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--reasoning", type=Path, help="an artifact that reasons (default: the same)")
    parser.add_argument("--smollm2", type=Path, help="an artifact of SmolLM2-135M-Instruct (default: the same)")
    parser.add_argument("--embedding", type=Path, help="a directory of all-MiniLM-L6-v2")
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
        (directory / "pooled").mkdir()
        if options.embedding:
            pooled(options.embedding.resolve(), directory / "pooled")
        artifacts = {"artifact": artifact, "reasoning": options.reasoning or artifact, "smollm2": options.smollm2 or artifact}
        found = run(directory, {name: path.resolve() for name, path in artifacts.items()}, options.only, reasons)
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

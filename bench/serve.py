"""A load test: any server that speaks OpenAI's API, or an `engine serve` that is started for it."""

import http.client
import json
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import uvloop

from ..errors import UsageError, WorkerError
from . import client
from .connection import Server
from .engine_server import EngineServer
from .metrics import Slo, Summary, span, summarize
from .options import Serve, settings
from .processes import Usage
from .provenance import provenance
from .report import Report
from .serve_results import Row, Run, ServeResults
from .serve_tables import tables
from .stream import Result
from .workload import Request, open_tokenizer, random_requests, read_requests

_TIMEOUT_S = 30.0


def measure(options: Serve) -> Report:
    """Raises UsageError if there is no such server or model, WorkerError if no request of a run succeeds."""
    facts = provenance(options.artifacts)
    prompts = _prompts(options)
    with _server(options) as (url, usage):
        bench = _Bench(options, url, options.model or only_model(url, options.api_key), usage)
        if options.warmup:
            bench.drive(prompts(0)[: options.warmup], options.warmup, None)
        loads = [(None, rate) for rate in options.rate] if options.rate else [(users, None) for users in options.concurrency]
        rows = []
        for place, (concurrency, rate) in enumerate(loads):
            parts = range(1 + place * options.runs, 1 + (place + 1) * options.runs)
            rows.append(Row(concurrency=concurrency, rate=rate, runs=[bench.run(prompts(part), concurrency, rate) for part in parts]))
        results = ServeResults(model=bench.model, rows=rows, peak_rss_bytes=usage().peak_rss_bytes if usage else None)
    warnings = _warnings([run.summary for row in rows for run in row.runs], bench.errors)
    return Report(
        benchmark="serve",
        tables=tables(results),
        settings=settings(options),
        results=results,
        provenance=facts,
        warnings=warnings,
    )


def only_model(url: str, api_key: str | None = None) -> str:
    """The name of the one model that a server has. Raises UsageError if it has none or several, or does not answer."""
    server = Server.parse(url, path="models", api_key=api_key)
    kind = http.client.HTTPSConnection if server.encrypted else http.client.HTTPConnection
    connection = kind(server.host, server.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", server.path, headers={"Authorization": f"Bearer {api_key}"} if api_key else {})
        response = connection.getresponse()
        answer = response.read()
        names = [model["id"] for model in json.loads(answer)["data"]] if response.status == 200 else []
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"{url} does not answer as OpenAI's API does: {error!r}", hint="is the server up? write http://HOST:PORT"
        ) from error
    finally:
        connection.close()
    if len(names) != 1:
        found = f"has the models {', '.join(names)}" if names else f"names no models (HTTP {response.status})"
        raise UsageError(f"{url} {found}", hint="choose one with --model NAME")
    return str(names[0])


class _Bench:
    """Drives one server. `errors` are those of single requests."""

    def __init__(self, options: Serve, url: str, model: str, usage: Callable[[], Usage] | None) -> None:
        self.model = model
        self.errors: list[str] = []
        self._options = options
        self._url = url
        self._usage = usage
        limits = (options.slo_ttft, options.slo_tpot, options.slo_e2e)
        ttft_s, tpot_s, e2e_s = (None if limit is None else limit / 1000 for limit in limits)
        self._slo = Slo(ttft_s=ttft_s, tpot_s=tpot_s, e2e_s=e2e_s)

    def run(self, requests: Sequence[Request], concurrency: int | None, rate: float | None) -> Run:
        server_before = self._usage().cpu_s if self._usage else 0.0
        client_before = _own_cpu_seconds()
        results = self.drive(requests, concurrency, rate)
        client_cpu_s = _own_cpu_seconds() - client_before
        server_cpu_s = self._usage().cpu_s - server_before if self._usage else None
        return Run(summary=summarize(results, span(results), self._slo), server_cpu_s=server_cpu_s, client_cpu_s=client_cpu_s)

    def drive(self, requests: Sequence[Request], concurrency: int | None, rate: float | None) -> list[Result]:
        """Raises WorkerError if every request failed."""
        options = self._options
        results = uvloop.run(
            client.run(
                self._url,
                self.model,
                requests,
                concurrency=concurrency,
                rate=rate,
                time_limit_s=options.time_limit,
                chat=options.chat,
                api_key=options.api_key,
                seed=options.seed,
            )
        )
        errors = [result.error for result in results if result.error is not None]
        if len(errors) == len(results):
            raise WorkerError(f"every request failed; the first one: {errors[0]}", hint="ask the server once by hand: curl URL/v1/models")
        self.errors += errors
        return results


@contextmanager
def _server(options: Serve) -> Iterator[tuple[str, Callable[[], Usage] | None]]:
    """The server's address, and what it has used if it is ours."""
    if options.artifacts is None:
        assert options.url is not None
        yield options.url, None
        return
    with EngineServer(options.artifacts, options.serve_arguments) as server:
        server.wait_until_ready()
        yield server.url, server.usage


def _prompts(options: Serve) -> Callable[[int], list[Request]]:
    """Requests by the number of a run: other words in the same lengths, or always those of a file."""
    source = options.tokenizer or options.artifacts
    assert source is not None
    tokenizer = open_tokenizer(source)
    if options.prompts is not None:
        given = read_requests(options.prompts, tokenizer, options.output_tokens[1])[: options.requests]
        return lambda part: given
    return lambda part: random_requests(tokenizer, options.requests, options.prompt_tokens, options.output_tokens, options.seed, part)


def _own_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _warnings(summaries: Sequence[Summary], errors: Sequence[str]) -> list[str]:
    found = []
    if errors:
        found.append(f"{len(errors)} requests failed; the first one: {errors[0]}")
    if cut := sum(summary.cut for summary in summaries):
        found.append(f"the time limit cut {cut} requests: they are in the tokens per second, and in nothing else")
    if short := sum(summary.short for summary in summaries):
        found.append(f"{short} answers are shorter than asked for: the server does not ignore the end of text")
    if cached := sum(summary.cached_tokens for summary in summaries):
        found.append(f"the server had {cached} prompt tokens in its prefix cache: another --seed asks what it has not seen")
    return found

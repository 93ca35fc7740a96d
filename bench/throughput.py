"""How much work gets done when everything is asked at once, without HTTP."""

import time
from collections.abc import Sequence

import msgspec

from ..server.llm import LLM, Params
from .options import Throughput, settings
from .provenance import provenance
from .report import Report, Spread, Table
from .workload import Request, open_tokenizer, random_requests

_WORKER_OPTIONS = ("threads", "kv_memory", "max_num_seqs", "max_batch_tokens")


class ThroughputRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Rates are per second of wall_s."""

    wall_s: float
    requests: int
    prompt_tokens: int
    output_tokens: int

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.wall_s

    @property
    def output_tokens_per_s(self) -> float:
        return self.output_tokens / self.wall_s

    @property
    def total_tokens_per_s(self) -> float:
        return (self.prompt_tokens + self.output_tokens) / self.wall_s


class ThroughputResults(msgspec.Struct, frozen=True, kw_only=True):
    runs: list[ThroughputRun]


def measure(options: Throughput) -> Report:
    """All requests of a run in one call of `LLM.generate`. Raises EngineError as it does."""
    facts = provenance(options.artifacts)
    tokenizer = open_tokenizer(options.artifacts)
    worker = {name: getattr(options, name) for name in _WORKER_OPTIONS}
    with LLM(options.artifacts, generation_config="none", **worker) as llm:
        lengths = (options.output_tokens, options.output_tokens)
        parts = [
            random_requests(tokenizer, options.requests, options.prompt_tokens, lengths, options.seed, part)
            for part in range(options.runs + 1)
        ]
        _run(llm, parts[0][:1])
        results = ThroughputResults(runs=[_run(llm, part) for part in parts[1:]])
    return Report(benchmark="throughput", tables=[_table(results)], settings=settings(options), results=results, provenance=facts)


def _run(llm: LLM, requests: Sequence[Request]) -> ThroughputRun:
    params = Params(max_tokens=requests[0].max_tokens, temperature=0.0, ignore_eos=True)
    begin = time.perf_counter()
    completions = llm.generate([request.prompt for request in requests], params)
    wall_s = time.perf_counter() - begin
    return ThroughputRun(
        wall_s=wall_s,
        requests=len(completions),
        prompt_tokens=sum(completion.prompt_tokens for completion in completions),
        output_tokens=sum(completion.generated_tokens for completion in completions),
    )


def _table(results: ThroughputResults) -> Table:
    runs = results.runs
    rows = [
        ("requests/s", Spread.of([run.requests_per_s for run in runs]).show(digits=2)),
        ("output tokens/s", Spread.of([run.output_tokens_per_s for run in runs]).show()),
        ("total tokens/s", Spread.of([run.total_tokens_per_s for run in runs]).show()),
        ("seconds", Spread.of([run.wall_s for run in runs]).show(digits=2)),
    ]
    title = f"{runs[0].requests} requests at once, median (range) of {len(runs)} runs"
    return Table(title=title, columns=("", ""), rows=rows)

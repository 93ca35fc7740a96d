"""Which benchmarks there are and what their help says; `bench/NAME.py` measures. Imports nothing heavy: a help text waits for nothing."""

from dataclasses import dataclass
from typing import Any

from . import options as kinds


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark on the command line.

    options: the class that its flags become. plots: whether it takes --plot. passes_on: whether
    arguments after -- go to engine serve.
    """

    options: type[Any]
    help: str
    epilog: str
    plots: bool = False
    passes_on: bool = False


BENCHMARKS = {
    "startup": Benchmark(
        options=kinds.Startup,
        help="the time from exec to the first token over HTTP, against `import torch`",
        epilog="""\
example:
  engine bench startup --artifacts smollm2 --json startup.json
  engine bench startup --artifacts smollm2 -- --threads 2

Start and import take turns, so that a slow minute slows both. Arguments after -- go to engine serve.""",
        passes_on=True,
    ),
    "latency": Benchmark(
        options=kinds.Latency,
        help="decode milliseconds per step and prefill seconds, offline",
        epilog="""\
example:
  engine bench latency --artifacts smollm2 --batch 1,8 --context 256 --plot latency.svg

A decode step reads all weights once (of a mixture's experts those that are chosen) and every sequence's
keys and values; the table says how fast that is, against the bandwidth at which this machine reads
memory, measured in the same run.""",
        plots=True,
    ),
    "throughput": Benchmark(
        options=kinds.Throughput,
        help="requests and tokens per second with everything asked at once, offline",
        epilog="""\
example:
  engine bench throughput --artifacts smollm2 --requests 128 --max-num-seqs 32""",
    ),
    "serve": Benchmark(
        options=kinds.Serve,
        help="any OpenAI-compatible server under load: TTFT, ITL, TPOT, tokens per second, goodput",
        epilog="""\
examples:
  engine bench serve --artifacts smollm2                         starts engine serve, measures it, stops it
  engine bench serve --artifacts smollm2 -- --max-num-seqs 32    the same, with arguments for engine serve
  engine bench serve --url http://host:8000 --tokenizer DIR      any running server ($ENGINE_API_KEY is its key)
  engine bench serve --artifacts smollm2 --rate 1,2,4 --slo-ttft 500 --slo-tpot 50 --plot goodput.svg

TTFT  time to first token       ITL  inter-token latency: every gap between two tokens
TPOT  time per output token after the first      E2E  the whole request
goodput  requests per second that met every --slo limit

No prompt shares a beginning with another, so no prefix cache helps. Client and server share this
machine's cores: the table says how many cores the client took.""",
        plots=True,
        passes_on=True,
    ),
    "kernels": Benchmark(
        options=kinds.Kernels,
        help="each kernel alone: GB/s and multiply-adds per second, against what this machine can do",
        epilog="""\
example:
  engine bench kernels --artifacts smollm2 --rows 1,256 --shape 4096x11008

One row (a decode step) is limited by reading the weights; many rows (a prefill) by multiplying.
Weights rotate through more copies than the last cache holds, as they do in a model.""",
    ),
}

"""The options of `engine bench` and `engine tune`. No imports beyond the standard library: the command line reads them at every start."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..options.option import option, positional, required, same_as
from ..options.runtime import RuntimeOptions
from ..options.values import COUNT, DIRECTORY, FILE, OUTPUT, natural, number_range, positive_number, positive_numbers, shape, whole_numbers

_LIST = {"type": whole_numbers, "metavar": "N,N,..."}
_RANGE = {"type": number_range, "metavar": "N:M"}
_MS = {"type": positive_number, "metavar": "MS"}
_ARTIFACTS: Any = required("a directory that `engine build` wrote", **DIRECTORY)


def settings(options: "Startup | Serve | Latency | Throughput | Kernels") -> dict[str, Any]:
    """All options but secrets, for the record."""
    return {name: value for name, value in asdict(options).items() if name != "api_key"}


@dataclass(frozen=True, kw_only=True)
class Startup:
    """From exec to the first token. serve_arguments: what `engine serve` is given besides."""

    artifacts: Path = _ARTIFACTS
    runs: int = option(5, "counted starts; one more comes first and warms the page cache", **COUNT)
    serve_arguments: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Which requests are made."""

    requests: int = option(64, "requests per run", **COUNT)
    prompt_tokens: tuple[int, int] = option((32, 256), "length of prompts, drawn evenly between the two", **_RANGE)
    seed: int = option(0, "draws lengths, words and arrival times: the same seed asks the same", type=natural, metavar="N")
    runs: int = option(3, "runs, each with prompts of its own; medians are shown, with the range", **COUNT)


@dataclass(frozen=True, kw_only=True)
class Serve(Workload):
    """A load test over HTTP, of a server that runs at url or of one that is started on artifacts. api_key is sent to the former."""

    url: str | None = option(None, "a running server, any that speaks OpenAI's API", metavar="URL")
    artifacts: Path | None = option(None, "start `engine serve` on this artifact instead, and stop it afterwards", **DIRECTORY)
    model: str | None = option(None, "the model's name at the server (default: the only one it has)", metavar="NAME")
    tokenizer: Path | None = option(
        None,
        "tokenizer.json, or a directory with one, to make prompts of exact length with (default: the artifact's)",
        type=Path,
        metavar="PATH",
    )
    output_tokens: tuple[int, int] = option(
        (64, 64), "length of answers, drawn evenly between the two; the end of text is ignored", **_RANGE
    )
    prompts: Path | None = option(None, 'take prompts from a .jsonl file, {"prompt": "..."} per line, in place of random words', **FILE)
    concurrency: tuple[int, ...] = option(
        (1, 8, 32), "clients that each wait for their answer before they ask again; one row each", **_LIST
    )
    rate: tuple[float, ...] | None = option(
        None,
        "requests per second, at random times and however slow the server is, in place of --concurrency; one row each",
        type=positive_numbers,
        metavar="R,R,...",
    )
    time_limit: float | None = option(None, "seconds after which a run is cut off", type=positive_number, metavar="S")
    warmup: int = option(2, "requests made before anything is counted", type=natural, metavar="N")
    chat: bool = option(False, "use /v1/chat/completions, each prompt as a user's message")
    api_key: str | None = None
    slo_ttft: float | None = option(None, "time to first token that a good request meets", **_MS)
    slo_tpot: float | None = option(None, "time per output token that a good request meets", **_MS)
    slo_e2e: float | None = option(None, "time of a whole request that a good one meets", **_MS)
    serve_arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.url is None) == (self.artifacts is None):
            raise UsageError(
                "give either --url or --artifacts", hint="--url measures a running server, --artifacts starts engine serve itself"
            )
        if self.serve_arguments and self.artifacts is None:
            raise UsageError("arguments after -- are for the server that --artifacts starts", hint="start the server at --url with them")
        if self.url is not None and self.tokenizer is None:
            raise UsageError("--url needs --tokenizer, to make prompts of an exact number of tokens", hint="the model's tokenizer.json")


@dataclass(frozen=True, kw_only=True)
class Offline:
    """What the benchmarks without HTTP share."""

    artifacts: Path = _ARTIFACTS
    max_batch_tokens: int = same_as(RuntimeOptions, "max_batch_tokens")
    kv_memory: int | None = same_as(RuntimeOptions, "kv_memory")
    threads: int | None = same_as(RuntimeOptions, "threads")


@dataclass(frozen=True, kw_only=True)
class Latency(Offline):
    """Milliseconds per decode step and seconds per prefill, in this process."""

    batch: tuple[int, ...] = option((1, 2, 4, 8, 16, 32), "sequences that decode together; one row each", **_LIST)
    context: tuple[int, ...] = option((128, 1024), "tokens of each sequence when decoding begins; one row each", **_LIST)
    prefill: tuple[int, ...] = option((128, 512, 1500), "prompts to prefill, in tokens; one row each", **_LIST)
    steps: int = option(32, "decode steps measured of each batch", **COUNT)
    runs: int = option(3, "prefills measured of each length", **COUNT)


@dataclass(frozen=True, kw_only=True)
class Throughput(Offline, Workload):
    """All requests at once, without HTTP."""

    output_tokens: int = option(64, "length of every answer; the end of text is ignored", **COUNT)
    max_num_seqs: int = same_as(RuntimeOptions, "max_num_seqs")


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Kernels alone, against what the machine can do."""

    artifacts: Path = _ARTIFACTS
    threads: int | None = option(None, "CPU threads (default: all physical cores)", **COUNT)
    rows: tuple[int, ...] = option((1, 8, 256), "tokens per call (M)", **_LIST)
    shape: tuple[int, int] = option(
        (4096, 4096), "outputs by inputs of a linear layer in every format, besides the artifact's own", type=shape, metavar="NxK"
    )
    seconds: float = option(0.3, "spent on each kernel; more makes medians steadier", type=positive_number, metavar="S")


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Options of `engine tune`. context: at most the model's limit."""

    artifacts: Path = positional("an artifact that was built with --tunable; weights are not needed", **DIRECTORY)
    output: Path = required("where the choices go", **(OUTPUT | FILE))
    context: int = option(1024, "tokens of each sequence when attention of decode steps is timed", **COUNT)
    runs: int = option(9, "timed launches of each candidate, of which the median counts", **COUNT)
    margin: float = option(
        2.0,
        "how much faster than the first guess a candidate must be to be taken; more keeps noise out",
        type=float,
        metavar="PERCENT",
    )
    only: str = option("", "only problems whose name has this in it, e.g. 'attention' or '4096x14336'", metavar="TEXT")

    def __post_init__(self) -> None:
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise UsageError(f"--margin {self.margin} is no percentage", hint="2 asks for 2 % less time than the first guess takes")
        if self.output.is_dir():
            raise UsageError(f"{self.output} is a directory", hint="-o names the file that gets the choices")

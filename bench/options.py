"""The options of every benchmark and their defaults; the command line reads both from here. No imports beyond the standard library."""

from argparse import ArgumentTypeError
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError


def option(default: Any, help_text: str, **argument: Any) -> Any:
    """A field with its help text; `argument` are further settings of the flag, as argparse takes them."""
    return field(default=default, metadata={"help": help_text, **argument})


def whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def natural(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def whole_numbers(text: str) -> tuple[int, ...]:
    """`1,8,32`"""
    return tuple(whole_number(part) for part in text.split(","))


def number_range(text: str) -> tuple[int, int]:
    """`32:256`, both included; `64` is `64:64`."""
    low, _, high = text.partition(":")
    first, last = whole_number(low), whole_number(high or low)
    if first > last:
        raise ArgumentTypeError(f"{text!r} ends before it begins")
    return first, last


def positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def positive_numbers(text: str) -> tuple[float, ...]:
    """`0.5,1,2`"""
    return tuple(positive_number(part) for part in text.split(","))


def shape(text: str) -> tuple[int, int]:
    """`4096x11008`: outputs by inputs."""
    outputs, _, inputs = text.partition("x")
    return whole_number(outputs), whole_number(inputs)


def as_typed(value: Any, parse: Any) -> str:
    """A default as one would type it for `parse` to read."""
    if parse is number_range and value[0] == value[1]:
        value = value[:1]
    separator = {number_range: ":", shape: "x"}.get(parse, ",")
    return separator.join(map(str, value)) if isinstance(value, tuple) else str(value)


_LIST = {"type": whole_numbers, "metavar": "N,N,..."}
_RANGE = {"type": number_range, "metavar": "N:M"}
_NUMBER = {"type": whole_number, "metavar": "N"}
_MS = {"type": positive_number, "metavar": "MS"}


def settings(options: "Startup | Serve | Latency | Throughput | Kernels") -> dict[str, Any]:
    """All options but secrets, for the record."""
    return {name: value for name, value in asdict(options).items() if name != "api_key"}


@dataclass(frozen=True, kw_only=True)
class Startup:
    """From exec to the first token. serve_arguments: what `engine serve` is given besides."""

    artifacts: Path
    runs: int = option(5, "counted starts; one more comes first and warms the page cache", **_NUMBER)
    serve_arguments: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Served:
    """Which server is measured: one that runs at url, or one that is started on artifacts."""

    url: str | None = option(None, "a running server, any that speaks OpenAI's API", metavar="URL")
    artifacts: Path | None = option(None, "start `engine serve` on this artifact instead, and stop it afterwards", type=Path, metavar="DIR")
    model: str | None = option(None, "the model's name at the server (default: the only one it has)", metavar="NAME")
    tokenizer: Path | None = option(
        None,
        "tokenizer.json, or a directory with one, to make prompts of exact length with (default: the artifact's)",
        type=Path,
        metavar="PATH",
    )


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Which requests are made."""

    requests: int = option(64, "requests per run", **_NUMBER)
    prompt_tokens: tuple[int, int] = option((32, 256), "length of prompts, drawn evenly between the two", **_RANGE)
    seed: int = option(0, "draws lengths, words and arrival times: the same seed asks the same", type=natural, metavar="N")
    runs: int = option(3, "runs, each with prompts of its own; medians are shown, with the range", **_NUMBER)


@dataclass(frozen=True, kw_only=True)
class Serve(Workload, Served):
    """A load test over HTTP. Either url or artifacts is given. api_key is sent to the server at url."""

    output_tokens: tuple[int, int] = option(
        (64, 64), "length of answers, drawn evenly between the two; the end of text is ignored", **_RANGE
    )
    prompts: Path | None = option(
        None, 'take prompts from a .jsonl file, {"prompt": "..."} per line, in place of random words', type=Path, metavar="FILE"
    )
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
    chat: bool = option(False, "use /v1/chat/completions, each prompt as a user's message", action="store_true")
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
            raise UsageError("arguments after -- are for the server that --artifacts starts")
        if self.url is not None and self.tokenizer is None:
            raise UsageError("--url needs --tokenizer, to make prompts of an exact number of tokens", hint="the model's tokenizer.json")


@dataclass(frozen=True, kw_only=True)
class Offline:
    """What the benchmarks without HTTP share. Worker options are as in RuntimeOptions."""

    artifacts: Path
    threads: int | None = None
    kv_memory: int | None = None
    max_batch_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Latency(Offline):
    """Milliseconds per decode step and seconds per prefill, in this process."""

    batch: tuple[int, ...] = option((1, 2, 4, 8, 16, 32), "sequences that decode together; one row each", **_LIST)
    context: tuple[int, ...] = option((128, 1024), "tokens of each sequence when decoding begins; one row each", **_LIST)
    prefill: tuple[int, ...] = option((128, 512, 1500), "prompts to prefill, in tokens; one row each", **_LIST)
    steps: int = option(32, "decode steps measured of each batch", **_NUMBER)
    runs: int = option(3, "prefills measured of each length", **_NUMBER)


@dataclass(frozen=True, kw_only=True)
class Throughput(Offline, Workload):
    """All requests at once, without HTTP."""

    output_tokens: int = option(64, "length of every answer; the end of text is ignored", **_NUMBER)
    max_num_seqs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Kernels alone, against what the machine can do."""

    artifacts: Path
    threads: int | None = option(None, "CPU threads (default: all physical cores)", **_NUMBER)
    rows: tuple[int, ...] = option((1, 8, 256), "tokens per call (M)", **_LIST)
    shape: tuple[int, int] = option(
        (4096, 4096), "outputs by inputs of a linear layer in every format, besides the artifact's own", type=shape, metavar="NxK"
    )
    seconds: float = option(0.3, "spent on each kernel; more makes medians steadier", type=positive_number, metavar="S")

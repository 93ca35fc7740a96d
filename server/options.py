"""What the server is told at start. No imports beyond the standard library: it is read before anything is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..options.option import check_choices, option, required
from ..options.runtime import RuntimeOptions
from ..options.values import COUNT, DIRECTORY, FILE
from .parsing.names import NONE, REASONING_FORM_NAMES, TOOL_FORM_NAMES

API_KEY_VARIABLE = "ENGINE_API_KEY"
"""Of the environment: other users of the machine do not see it, and neither do workers."""
GenerationConfig = Literal["auto", "none"]
WeightsCheck = Literal["before", "background", "off"]


@dataclass(frozen=True, kw_only=True)
class WorkerOptions(RuntimeOptions):
    """How a worker is started.

    digest: of the artifact that alone may be loaded. verify_weights: when their digests are compared;
    a worker by itself does it before it is ready, or not.
    workers: how many share this machine's memory and time. cpus: those on which this one runs, as `0-3,8` (None: all that there are).
    worker_command replaces the command before the flags, for a worker that is not the built-in one.
    """

    artifacts: Path = required("a directory that `engine build` wrote", **DIRECTORY)
    digest: str | None = None
    verify_weights: WeightsCheck = "off"
    workers: int = 1
    cpus: str | None = None
    worker_command: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ServeOptions(WorkerOptions):
    """Options of `engine serve`. Times are in seconds."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 opens it to the network, use --api-key then")
    port: int = option(8000, "port to listen on; 0 picks a free one", type=int, metavar="N")
    api_key: str | None = option(
        None, "ask for `Authorization: Bearer KEY` or `X-Api-Key: KEY` (default: $ENGINE_API_KEY, else none)", metavar="KEY"
    )
    allow_origin: tuple[str, ...] = option(
        (),
        "web pages of this origin may use the server: https://HOST[:PORT], or * for all; may be given more than once "
        "(default: those of this machine if --host is, else none)",
        metavar="ORIGIN",
    )
    allow_host: tuple[str, ...] = option(
        (),
        "a name by which a server that listens on this machine only may be asked, besides localhost; may be given more than once",
        metavar="NAME",
    )
    special_in_messages: bool = option(
        False,
        "text of special tokens in messages becomes those tokens; by default it is text, so that nobody can open a turn of the system's",
    )
    no_page: bool = option(False, "leave out the page at / (chat and live load, for people): the API alone is served")
    served_model_name: str | None = option(None, "the model's name in the API (default: the one in the artifact)", metavar="NAME")
    tool_parser: str | None = option(
        None,
        "the form in which the model writes tool calls, none for no parsing (default: what the build found)",
        choices=(*TOOL_FORM_NAMES, NONE),
    )
    reasoning_parser: str | None = option(
        None,
        "the form in which it writes reasoning, none for no parsing (default: what the build found)",
        choices=(*REASONING_FORM_NAMES, NONE),
    )
    generation_config: GenerationConfig = option(
        "auto",
        "how tokens are chosen where a request does not say. auto: as the checkpoint's generation_config.json recommends; "
        "none: as OpenAI documents",
        choices=("auto", "none"),
    )
    replicas: int = option(
        1,
        "workers that serve the model side by side, each on its share of the CPUs, of --threads and of --kv-memory, over one copy of the "
        "weights: a request is computed where its beginning is cached or least is waiting, with the same answer. For machines of several "
        "NUMA nodes, and for many short requests",
        **COUNT,
    )
    max_queue: int = option(
        256,
        "requests that may wait beyond those running before further ones are told to come back later (HTTP 503); "
        "more waits longer instead of refusing",
        **COUNT,
    )
    hold_timeout: float = option(
        60.0,
        "seconds that a request waits for a worker that is still loading, before it is refused (HTTP 503); 0 refuses at once",
        type=float,
        metavar="S",
    )
    keep_alive: int = option(30, "seconds that a connection may rest between two requests", type=int, metavar="S")
    request_timeout: float = option(
        15.0,
        "seconds that a client may take for a request's headers, for each 16 KiB of its body, and to take anything of an answer; "
        "then its connection is closed",
        type=float,
        metavar="S",
    )
    stream_silence: float = option(
        10.0,
        "seconds after which a stream with nothing to send yet sends its status and a comment, and again after as many: "
        "proxies cut connections that are silent; an error after that comes as an event",
        type=float,
        metavar="S",
    )
    drain_timeout: float = option(
        30.0,
        "seconds that running requests get to finish after SIGTERM before they are cut off; keep it below what stops the container",
        type=float,
        metavar="S",
    )
    verify_weights: WeightsCheck = option(
        "background",
        "when to compare the weights with the manifest, as code and tokenizer always are at once. before: a damaged file is never "
        "served, but the start waits until all have been read; background: beside serving, with a tenth of a core at most, "
        "and a server whose weights are damaged stops then; off: only by the golden probe",
        choices=("before", "background", "off"),
    )
    digest: str | None = option(None, "load no other artifact than that of this digest, which engine verify prints", metavar="HEX")
    verify_key: Path | None = option(
        None,
        "a PEM file with an Ed25519 public key: load nothing of an artifact that its owner has not signed (default: load any)",
        **FILE,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)

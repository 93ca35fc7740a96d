"""The flags of the `engine` command: names, types and what each one trades.

Options that are not given stay out of the result, so that their defaults live in one place,
the options class of the part that uses them. Nothing heavy is imported.
"""

import argparse
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .errors import UsageError
from .runtime.options import RuntimeOptions
from .server.options import ServeOptions

if TYPE_CHECKING:
    from .bench.benchmarks import Benchmark

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def byte_size(text: str) -> int:
    """`2GiB` and `2G` are 2 * 1024**3, `2GB` is 2 * 1000**3, `4096` is 4096 bytes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 2GiB, 512MB or a number of bytes")
    number, prefix, unit = match.groups()
    base = 1000 if unit and unit.lower() == "b" else 1024
    return int(float(number) * base ** _POWERS[prefix.lower()])


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def days(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")
    return number


class _Parser(argparse.ArgumentParser):
    """Reports a wrong flag as every other error of ours: a message and a hint."""

    def __init__(self, **settings: Any) -> None:
        ours: dict[str, Any] = {
            "formatter_class": argparse.RawDescriptionHelpFormatter,
            "allow_abbrev": False,
            "argument_default": argparse.SUPPRESS,
        }
        super().__init__(**(ours | settings))

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"{self.prog} --help")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read a command line. Raises UsageError; exits 0 after printing help or the version.

    `command` is the name of the subcommand; every other attribute is an option that was given.
    """
    parser = _Parser(
        prog="engine",
        description="Compile a language model once, ahead of time; serve it in seconds, compiling nothing.",
        epilog="""\
examples:
  engine build ./SmolLM2-135M-Instruct --target cpu -o smollm2
  engine serve --artifacts smollm2
  engine chat --artifacts smollm2

`engine COMMAND --help` explains a command. Results go to stdout, everything else to stderr.
exit codes: 0 done, 2 usage, 3 damaged checkpoint, 4 unsupported model, 5 build failed,
6 damaged artifact, 7 artifact for another machine, 8 worker failed, 9 request refused, 10 GPU or its driver failed,
11 push or pull failed, 130 Ctrl-C""",
    )
    parser.add_argument("--version", action="version", version=f"engine {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        *(_add_build, _add_pack, _add_push, _add_pull, _add_serve, _add_generate, _add_chat, _add_inspect, _add_verify, _add_plan),
        *(_add_cache, _add_sign, _add_tune),
    ):
        add(commands)
    _add_bench(commands, chosen=list(sys.argv[1:] if argv is None else argv)[:1] == ["bench"])
    return parser.parse_args(argv)


_Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns


def _add_build(commands: "_Commands[_Parser]") -> None:
    parser = commands.add_parser(
        "build",
        help="compile a checkpoint into an artifact",
        description="Compile a checkpoint into an artifact: a directory of native code, packed weights and tokenizer.",
        epilog="""\
examples:
  engine build ./my-llama -o artifact                      a Hugging Face directory, for this machine
  engine build HuggingFaceTB/SmolLM2-135M-Instruct -o a    a name on the hub (HF_HUB_OFFLINE=1: its cache only)
  engine build model.Q4_1.gguf --target cpu-x86-64-v3 -o a a GGUF file, for every AVX2 machine
  engine build ./my-llama --target sm90 -o artifact        for NVIDIA Hopper; no GPU, driver or CUDA toolkit is needed here

The same build again, or one of the same architecture with other weights, compiles nothing.""",
    )
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face directory, a GGUF file or a name on the hub")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="where the artifact goes")
    parser.add_argument(
        "--target",
        metavar="T",
        help="cpu: the best for this machine. cpu-x86-64-v3 (AVX2) or cpu-x86-64-v4 (AVX-512): one artifact for a fleet, "
        "built anywhere, without what only some of its machines have. sm90: NVIDIA H100, H200, GH200, built anywhere with Triton "
        "(pip install 'engine-llm[nvidia]') (default: cpu)",
    )
    parser.add_argument(
        "--quantize",
        choices=["none", "int8", "int4", "fp8", "fp8-block"],
        help="int8 halves the memory and time per token of 16-bit weights and costs little accuracy, int4 halves both again and "
        "costs more (see engine verify --against). On NVIDIA, fp8 multiplies FP8 weights (a scale per output; fp8-block: per 128 x 128) "
        "with activations rounded to FP8 as they come: half the memory, twice the arithmetic. none keeps the checkpoint's weights; "
        "a GGUF's quantized blocks are always kept as they are (default: none)",
    )
    parser.add_argument(
        "--kv-dtype",
        choices=["auto", "float32", "bfloat16", "int8"],
        help="on CPU: against float32, bfloat16 fits twice the tokens into the KV cache, int8 almost four times. bfloat16 multiplies "
        "fastest; "
        "both keep 8 bits of every number, int8 with a scale for each token and head. auto is bfloat16, but float32 if the "
        "weights are; on NVIDIA always bfloat16 (default: auto)",
    )
    parser.add_argument(
        "--weights",
        choices=["all", "none"],
        help="none leaves the weights out: the code of an architecture alone, for which a directory with a config.json is enough. "
        "It can be inspected and benchmarked; to serve it, engine pack adds the weights of any such checkpoint (default: all)",
    )
    parser.add_argument(
        "--max-context",
        type=positive,
        metavar="N",
        help="longest prompt plus answer, in tokens; at most the model's own limit (default: that limit)",
    )
    parser.add_argument("--name", help="the model's name in the artifact and in the API (default: the checkpoint's)")
    parser.add_argument(
        "--disable-pass",
        action="append",
        metavar="NAME",
        help="leave out one graph rewrite, to see what it gives; may be given more than once (`engine inspect` lists those that ran)",
    )
    parser.add_argument(
        "--tuned",
        type=Path,
        metavar="FILE",
        help="choose among kernels by what `engine tune` measured on a GPU, instead of by first guesses (NVIDIA targets)",
    )
    parser.add_argument(
        "--tunable",
        action="store_true",
        help="keep all candidates of every kernel in the artifact, for `engine tune`; more to compile and a few MB more (NVIDIA targets)",
    )
    parser.add_argument("--jobs", type=positive, metavar="N", help="compiling processes; each takes up to 1 GB (default: by cores)")
    _add_store(parser)
    parser.add_argument(
        "--require-warm",
        action="store_true",
        help="fail, and say which ingredient of which key differs, where something would have to be compiled: for CI, where a slow "
        "build is a broken cache",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only print what would be compiled, reused and packed, in seconds; writes nothing",
    )
    parser.add_argument("--debug-dump", type=Path, metavar="DIR", help="write graphs before and after each pass, and the generated code")
    parser.add_argument("--force", action="store_true", help="replace an artifact that is already at DIR")


def _add_pack(commands: "_Commands[_Parser]") -> None:
    parser = commands.add_parser(
        "pack",
        help="add a checkpoint's weights to an artifact's code",
        description="Make an artifact of the code of one and the weights and tokenizer of a checkpoint. Compiles nothing and needs no "
        "compiler. The checkpoint must be of the same architecture, shapes and storage formats; else a table says what differs.",
        epilog="""\
examples:
  engine build ./my-llama --weights none -o code                once for an architecture: a few MB
  engine pack code --weights-from ./my-fine-tune -o artifact    for each fine-tune of it""",
    )
    parser.add_argument("code", type=Path, metavar="CODE", help="an artifact, with weights or without (engine build --weights none)")
    parser.add_argument(
        "--weights-from", required=True, metavar="CHECKPOINT", help="a Hugging Face directory, a GGUF file or a name on the hub"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="where the new artifact goes")
    parser.add_argument("--name", help="the model's name in the artifact and in the API (default: the checkpoint's)")
    parser.add_argument("--force", action="store_true", help="replace an artifact that is already at DIR")


def _add_push(commands: "_Commands[_Parser]") -> None:
    parser = commands.add_parser(
        "push",
        help="put an artifact into a repository on the Hugging Face hub",
        description="Put an artifact into a repository on the Hugging Face hub, in one commit. What the hub has already is not sent again, "
        "so an interrupted push goes on. Needs: pip install 'engine-llm[hub]'.",
        epilog="""\
example:
  HF_TOKEN=... engine push smollm2 my-team/smollm2-cpu-v3 --private

A repository holds one artifact; several are branches: --revision sm90. HF_ENDPOINT names another hub than huggingface.co.""",
    )
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("repo", metavar="REPO", help="organization/name; made if there is none")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch to push to, made if there is none (default: main)")
    parser.add_argument("--private", action="store_true", help="a repository that is made can be read with a token of yours alone")


def _add_pull(commands: "_Commands[_Parser]") -> None:
    parser = commands.add_parser(
        "pull",
        help="fetch an artifact from a repository on the Hugging Face hub",
        description="Fetch an artifact from a repository on the Hugging Face hub. DIR appears when every file is there and its SHA-256 is "
        "the manifest's; an interrupted pull goes on where it stopped. Needs: pip install 'engine-llm[hub]'.",
        epilog="""\
examples:
  engine pull my-team/smollm2-cpu-v3 -o smollm2
  engine pull my-team/llama-8b-code -o tuned --weights-from ./my-fine-tune    the code alone, with weights of your own

For private repositories, set HF_TOKEN or run `hf auth login`.""",
    )
    parser.add_argument("repo", metavar="REPO", help="organization/name")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="where the artifact goes")
    parser.add_argument("--revision", metavar="REV", help="a branch, tag or commit; only a commit is the same tomorrow (default: main)")
    parser.add_argument(
        "--weights-from",
        metavar="CHECKPOINT",
        help="fetch the code alone and add the weights of this checkpoint, as engine pack does (needs the extra `build`, no compiler)",
    )
    parser.add_argument("--name", help="with --weights-from: the model's name in the artifact and in the API (default: the checkpoint's)")
    parser.add_argument("--force", action="store_true", help="replace an artifact that is already at DIR; files that it shares stay here")


def _add_serve(commands: "_Commands[_Parser]") -> None:
    parser = commands.add_parser(
        "serve",
        help="serve an artifact over HTTP (OpenAI's API)",
        description="Serve an artifact over HTTP with OpenAI's API. Compiles nothing. SIGTERM finishes what is running and exits 0.",
        epilog="""\
example:
  engine serve --artifacts smollm2 --port 8000
  curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{"model": "smollm2", "messages": [{"role": "user", "content": "Hello!"}]}'

/health answers 503 with the phase while loading and 200 when ready; /metrics is for Prometheus.""",
    )
    _add_artifacts(parser)
    default = ServeOptions
    parser.add_argument(
        "--host", help=f"address to listen on; 0.0.0.0 opens it to the network, use --api-key then (default: {default.host})"
    )
    parser.add_argument("--port", type=int, metavar="N", help=f"port to listen on; 0 picks a free one (default: {default.port})")
    parser.add_argument("--api-key", metavar="KEY", help="ask for `Authorization: Bearer KEY` (default: $ENGINE_API_KEY, else none)")
    parser.add_argument("--served-model-name", metavar="NAME", help="the model's name in the API (default: the one in the artifact)")
    _add_worker_options(parser)
    parser.add_argument(
        "--max-queue",
        type=positive,
        metavar="N",
        help="requests that may wait beyond those running before further ones are told to come back later (HTTP 503); "
        f"more waits longer instead of refusing (default: {default.max_queue})",
    )
    parser.add_argument(
        "--hold-timeout",
        type=float,
        metavar="S",
        help="seconds that a request waits for a worker that is still loading, before it is refused (HTTP 503); "
        f"0 refuses at once (default: {default.hold_timeout:g})",
    )
    parser.add_argument(
        "--drain-timeout",
        type=float,
        metavar="S",
        help="seconds that running requests get to finish after SIGTERM before they are cut off; "
        f"keep it below what stops the container (default: {default.drain_timeout:g})",
    )
    parser.add_argument(
        "--verify-weights",
        choices=["before", "background", "off"],
        help="when to compare the weights with the manifest, as code and tokenizer always are at once. before: a damaged file is never "
        "served, but the start waits until all have been read; background: beside serving, with a tenth of a core at most, "
        f"and a server whose weights are damaged stops then; off: only by the golden probe (default: {default.verify_weights})",
    )
    parser.add_argument("--digest", metavar="HEX", help="load no other artifact than that of this digest, which engine verify prints")
    parser.add_argument(
        "--verify-key",
        type=Path,
        metavar="FILE",
        help="a PEM file with an Ed25519 public key: load nothing of an artifact that its owner has not signed (default: load any)",
    )


def _add_generate(commands: "_Commands[_Parser]") -> None:
    parser = commands.add_parser(
        "generate",
        help="complete prompts, offline and batched",
        description="Complete prompts without a server, all in one batch. Prompts: arguments, else --file, else stdin, one per line.",
        epilog="""\
examples:
  engine generate --artifacts smollm2 "The capital of France is" --max-tokens 8 --temperature 0
  engine generate --artifacts smollm2 --chat --file questions.txt --json > answers.jsonl
  head -100 prompts.txt | engine generate --artifacts smollm2

A .jsonl file has {"prompt": "..."} or {"messages": [...]} on each line.""",
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", default=[])
    _add_artifacts(parser)
    parser.add_argument("--file", type=Path, help="read prompts from a .txt (one per line) or .jsonl file")
    parser.add_argument("--chat", action="store_true", help="put each prompt through the chat template, as a user's message")
    parser.add_argument("--json", action="store_true", help="one JSON object per line: prompt, text, finish_reason, token counts")
    _add_sampling_options(parser)
    parser.set_defaults(max_tokens=256)
    _add_worker_options(parser)


def _add_chat(commands: "_Commands[_Parser]") -> None:
    parser = commands.add_parser(
        "chat",
        help="talk to a model in the terminal",
        description="Talk to a model in the terminal. /reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer.",
        epilog="""\
examples:
  engine chat --artifacts smollm2 --system "You answer in one sentence."
  echo "What is the capital of France?" | engine chat --artifacts smollm2""",
    )
    _add_artifacts(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    _add_sampling_options(parser)
    parser.set_defaults(temperature=0.7, top_p=0.95)
    _add_worker_options(parser)


def _add_inspect(commands: "_Commands[_Parser]") -> None:
    parser = commands.add_parser(
        "inspect",
        help="show what is in an artifact",
        description="Show an artifact's model, target, toolchain, segments, weights, fusions and files. Executes nothing from it.",
    )
    parser.add_argument("artifacts", type=Path, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="the manifest as JSON")


def _add_verify(commands: "_Commands[_Parser]") -> None:
    parser = commands.add_parser(
        "verify",
        help="check an artifact's files, who signed it, or its numbers against a checkpoint",
        description="Check an artifact's digest, size and SHA-256 of every file, and that there are no others; report all that is wrong. "
        "With --key, also its signature; with --against, also what it computes.",
        epilog="""\
examples:
  engine verify smollm2
  engine verify smollm2 --key public.pem
  engine verify smollm2 --against ./SmolLM2-135M-Instruct""",
    )
    parser.add_argument("artifacts", type=Path, metavar="DIR")
    parser.add_argument(
        "--against",
        metavar="CHECKPOINT",
        help="run artifact and checkpoint (in float32, plain PyTorch) on the same texts; print KL divergence and top-1 agreement",
    )
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help="a PEM file with an Ed25519 public key: refuse an artifact that its owner has not signed"
    )


def _add_sign(commands: "_Commands[_Parser]") -> None:
    parser = commands.add_parser(
        "sign",
        help="vouch for an artifact with an Ed25519 key",
        description="Sign an artifact's digest, after checking every file. The signature lies beside the manifest, in manifest.sig. "
        "Needs the package cryptography (pip install 'engine-llm[sign]').",
        epilog="""\
examples:
  openssl genpkey -algorithm ed25519 -out private.pem
  openssl pkey -in private.pem -pubout -out public.pem
  engine sign smollm2 --key private.pem
  engine verify smollm2 --key public.pem
  engine serve --artifacts smollm2 --verify-key public.pem""",
    )
    parser.add_argument("artifacts", type=Path, metavar="DIR")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="a PEM file with an Ed25519 private key, not encrypted")


def _add_tune(commands: "_Commands[_Parser]") -> None:
    parser = commands.add_parser(
        "tune",
        help="measure on a GPU which kernels are fastest, for the next build",
        description="Time every candidate of every kernel of an artifact on this machine's GPU, at the sizes of its graphs, and write "
        "which to take to a small file. Takes minutes; nothing is compiled here, and the artifact stays as it is.",
        epilog="""\
examples:
  engine build ./my-llama --target sm90 --tunable --weights none -o tunable     anywhere
  engine tune tunable -o h100.json                                              on the GPU
  engine build ./my-llama --target sm90 --tuned h100.json -o artifact           anywhere

A choice is for a shape, not for a model: one file serves every model whose layers have the shapes in it.""",
    )
    parser.add_argument("artifacts", type=Path, metavar="DIR", help="an artifact that was built with --tunable; weights are not needed")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="where the choices go")
    parser.add_argument(
        "--context", type=positive, metavar="N", help="tokens of each sequence when attention of decode steps is timed (default: 1024)"
    )
    parser.add_argument(
        "--runs", type=positive, metavar="N", help="timed launches of each candidate, of which the median counts (default: 9)"
    )
    parser.add_argument(
        "--margin",
        type=float,
        metavar="PERCENT",
        help="how much faster than the first guess a candidate must be to be taken; more keeps noise out (default: 2)",
    )
    parser.add_argument("--only", metavar="TEXT", help="only problems whose name has this in it, e.g. 'attention' or '4096x14336'")


def _add_cache(commands: "_Commands[_Parser]") -> None:
    parser = commands.add_parser(
        "cache",
        help="look at, move and shrink the store of what was compiled",
        description="The store keeps what builds compile, by what it was made from: a build compiles only what the store lacks.",
        epilog="""\
examples:
  engine cache stats
  engine cache explain artifact-here artifact-from-ci        why one build missed what the other had compiled
  engine cache export artifact -o warm                       all that building this artifact again needs
  engine cache import warm                                   on another machine; or: engine build ... --store warm
  engine cache prune --max-size 5GiB --unused-for 30""",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, help: str, description: str) -> _Parser:
        return actions.add_parser(name, help=help, description=description)

    stats = add(
        "stats", "entries, bytes and last use by kind", "Show what the store holds: entries, bytes and last use by kind, and where it is."
    )
    explain = add(
        "explain", "why two builds have other keys", "Show which ingredients of their keys differ between two artifacts. Needs no store."
    )
    for name in ("first", "second"):
        explain.add_argument(name, type=Path, metavar=name.upper(), help="an artifact's directory")
    export = add(
        "export",
        "what one artifact needs, as a store",
        "Copy what an artifact was built from into a store of its own: a build from it compiles nothing.",
    )
    export.add_argument("artifacts", type=Path, metavar="ARTIFACT", help="an artifact's directory")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the new store, or one to add to")
    imports = add(
        "import",
        "all entries of another store",
        "Copy every entry of another store, once all of them are verified. It is code: import from whom you trust.",
    )
    imports.add_argument("directory", type=Path, metavar="DIR", help="a store, such as `engine cache export` wrote")
    prune = add(
        "prune",
        "remove what was used longest ago",
        "Remove entries by last use. What running builds read stays, and so does all that is no entry.",
    )
    prune.add_argument(
        "--max-size", type=byte_size, metavar="SIZE", help="remove until the rest fits (5GiB); a smaller store compiles more often"
    )
    prune.add_argument("--unused-for", type=days, metavar="DAYS", help="remove what no build used for so many days")
    verify = add(
        "verify", "check every entry", "Check every entry against its digests. Builds do so too, and treat what is damaged as absent."
    )
    verify.add_argument("--remove", action="store_true", help="remove what is damaged; else it is listed, and the exit code is 6")
    for action in (stats, export, imports, prune, verify):
        _add_store(action)


def _add_store(parser: _Parser) -> None:
    parser.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="the store of what was compiled: shared by builds, it spares them compiling (default: $ENGINE_STORE, else one per user)",
    )


def _add_plan(commands: "_Commands[_Parser]") -> None:
    parser = commands.add_parser(
        "plan",
        help="how many sequences an artifact serves in how much memory",
        description="Say what serving takes and how many sequences fit, from the manifest alone: with the arithmetic of engine serve, "
        "but without weights, and on any machine.",
        epilog="""\
examples:
  engine plan smollm2 --memory 4GiB
  engine plan smollm2 --memory 16GiB --context 1024 --context 8192 --max-num-seqs 128 --json""",
    )
    parser.add_argument("artifacts", type=Path, metavar="DIR")
    parser.add_argument(
        "--memory",
        type=byte_size,
        required=True,
        metavar="SIZE",
        help="what is free where it is to be served, once the server's processes run: on a CPU what `free` calls available, within the "
        "container's limit, on a GPU what its driver calls free",
    )
    parser.add_argument(
        "--context",
        type=positive,
        action="append",
        metavar="N",
        help="prompt plus answer, in tokens; may be given more than once (default: a sixteenth, a quarter and all of the model's)",
    )
    _add_worker_options(parser, ("max_num_seqs", "max_batch_tokens"))
    parser.add_argument("--json", action="store_true", help="all figures as JSON, in bytes and tokens")


def _add_bench(commands: "_Commands[_Parser]", *, chosen: bool) -> None:
    """chosen: whether it is the command of this line. Else its many flags need not be made: `engine serve` is in a hurry."""
    parser = commands.add_parser("bench", help="measure start-up, latency, throughput, a server under load, kernels")
    if not chosen:
        return
    from .bench.benchmarks import BENCHMARKS, EPILOG

    parser.description = "Measure an artifact, or any OpenAI-compatible server. Medians with their range; --json keeps everything."
    parser.epilog = EPILOG
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, benchmark in BENCHMARKS.items():
        _add_benchmark(
            benchmarks.add_parser(name, help=benchmark.help, description=f"Measure {benchmark.help}.", epilog=benchmark.epilog), benchmark
        )


def _add_benchmark(parser: _Parser, benchmark: "Benchmark") -> None:
    from .bench.options import as_typed

    if benchmark.needs_artifacts:
        _add_artifacts(parser)
    for option in fields(benchmark.options):
        if "help" in option.metadata:
            settings = dict(option.metadata)
            shown = "" if option.default in (None, False) else f" (default: {as_typed(option.default, option.metadata.get('type'))})"
            parser.add_argument(f"--{option.name.replace('_', '-')}", help=settings.pop("help") + shown, **settings)
    _add_worker_options(parser, benchmark.worker)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every run to FILE, with machine, versions, commit and command line"
    )
    if benchmark.plots:
        parser.add_argument(
            "--plot", type=Path, metavar="FILE", help="draw the result to a .png, .svg or .pdf (pip install 'engine-llm[bench]')"
        )
    if benchmark.passes_on:
        parser.add_argument(
            "serve_arguments", nargs="*", metavar="ARGUMENT", default=(), help="after --: further arguments of engine serve"
        )


def _add_artifacts(parser: _Parser) -> None:
    parser.add_argument("--artifacts", type=Path, required=True, metavar="DIR", help="a directory that `engine build` wrote")


def _add_worker_options(parser: _Parser, names: Collection[str] | None = None) -> None:
    """names: which options (None: all)."""
    for option in fields(RuntimeOptions):
        if names is not None and option.name not in names:
            continue
        shown = "" if option.default is None else f" (default: {option.default})"
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=byte_size if option.name == "kv_memory" else positive,
            metavar="SIZE" if option.name == "kv_memory" else "N",
            help=option.metadata["help"] + shown,
        )


def _add_sampling_options(parser: _Parser) -> None:
    parser.add_argument(
        "--max-tokens", type=positive, metavar="N", help="longest answer, in tokens (default: generate 256, chat what the context leaves)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help="0 always takes the likeliest token; above 1 is wilder (default: generate 1, chat 0.7)",
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="choose among the N likeliest tokens; 0: among all")
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="choose among the likeliest tokens that make up P together (default: generate 1, chat 0.95)",
    )
    parser.add_argument("--min-p", type=float, metavar="P", help="drop tokens less than P times as likely as the likeliest")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer, whatever else is running")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text; may be given more than once")
    parser.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1 makes tokens that have occurred less likely")
    parser.add_argument("--presence-penalty", type=float, metavar="X", help="taken off the logit of each token answered before")
    parser.add_argument("--frequency-penalty", type=float, metavar="X", help="the same, times how often it was answered")

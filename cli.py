"""The `engine` command: reads the flags, runs one command, turns errors into messages.

Each command imports what it needs when it runs: `engine serve` must never import the compiler,
and a help text must not wait for torch.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .arguments import parse
from .errors import EngineError, UsageError

if TYPE_CHECKING:
    from .artifacts import Manifest

Options = dict[str, Any]
BUILD_PACKAGES = ("depyf", "filelock", "gguf", "huggingface_hub", "transformers")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. argv: without the program's name, sys.argv's by default."""
    try:
        options = vars(parse(argv))
        return COMMANDS[options.pop("command")](options)
    except EngineError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; the interpreter must not fail once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in BUILD_PACKAGES:
            raise
        return _fail(UsageError(f"the package {error.name} is not installed", hint="pip install 'engine-llm[build]'"))


def _fail(error: EngineError) -> int:
    sys.stdout.flush()
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _build(options: Options) -> int:
    from .compiler.environment import forget_torch_variables

    forget_torch_variables()
    from .compiler.build import build
    from .compiler.options import BuildOptions
    from .compiler.progress import Reporter

    if options.pop("dry_run", False):
        from rich.console import Console

        from .compiler.dry_run import dry_run

        Console().print(dry_run(BuildOptions(**options), Reporter()).table(), soft_wrap=True)
    else:
        build(BuildOptions(**options), Reporter())
    return 0


def _pack(options: Options) -> int:
    from .compiler.add_weights import PackOptions, add_weights
    from .compiler.progress import Reporter

    add_weights(PackOptions(**options), Reporter())
    return 0


def _push(options: Options) -> int:
    from .artifacts.describe import human_bytes
    from .shipping.progress import TransferBar
    from .shipping.push import PushOptions, push

    with TransferBar() as bar:
        done = push(PushOptions(**options), bar)
    print(f"{done.repo}@{done.commit[:12]}: {done.files} files, sent {done.sent_files}, {human_bytes(done.sent_bytes)}")
    return 0


def _pull(options: Options) -> int:
    from .artifacts import load_manifest
    from .artifacts.describe import human_bytes
    from .shipping.progress import TransferBar
    from .shipping.pull import PullOptions, pull, pulled_code

    weights_from, name = options.pop("weights_from", None), options.pop("name", None)
    wanted = PullOptions(**options)
    if weights_from is None:
        if name is not None:
            raise UsageError("--name is for an artifact that is made here", hint="it goes with --weights-from")
        with TransferBar() as bar:
            done = pull(wanted, bar)
        print(f"{done.repo}@{done.commit[:12]}: {done.files} files, fetched {done.sent_files}, {human_bytes(done.sent_bytes)}")
    else:
        with TransferBar() as bar, pulled_code(wanted, bar) as code:
            bar.stop()
            _pack({"code": code, "weights_from": weights_from, "output": wanted.output, "name": name, "force": wanted.force})
    _warn_of_what_serve_will_refuse(load_manifest(wanted.output))
    return 0


def _warn_of_what_serve_will_refuse(manifest: "Manifest") -> None:
    from .artifacts import check_servable
    from .runtime.fit import check_fit

    for check in (check_servable, check_fit):
        try:
            check(manifest)
        except EngineError as error:
            print(f"warning: {error}", file=sys.stderr)


def _serve(options: Options) -> int:
    from .server.options import ServeOptions
    from .server.serve import serve

    options.setdefault("api_key", os.environ.get("ENGINE_API_KEY") or None)
    return serve(ServeOptions(**options))


def _generate(options: Options) -> int:
    from .console import generate

    return generate(options)


def _chat(options: Options) -> int:
    from .console import chat

    return chat(options)


def _inspect(options: Options) -> int:
    from .artifacts import load_manifest

    manifest = load_manifest(options["artifacts"])
    if options.get("json"):
        sys.stdout.buffer.write(manifest.encode())
    else:
        from rich.console import Console

        from .artifacts.describe import describe

        Console().print(describe(manifest))
    return 0


def _verify(options: Options) -> int:
    from .artifacts import load_manifest, verify

    directory = options["artifacts"]
    manifest = load_manifest(directory)
    signed = ""
    if "key" in options:
        from .artifacts.signature import verify_signature

        verify_signature(directory, manifest.digest, options["key"])
        signed = f", signed by the owner of {options['key']}"
    verify(directory, manifest)
    print(f"{directory}: {len(manifest.files)} files, {sum(file.bytes for file in manifest.files.values()):,} bytes, all intact{signed}")
    print(f"digest {manifest.digest}")
    if "against" in options:
        from .compiler.verify import compare

        print(compare(directory, options["against"]))
    return 0


def _tune(options: Options) -> int:
    from .bench.tune import TuneOptions, tune

    tune(TuneOptions(**options))
    return 0


def _cache(options: Options) -> int:
    from .cache import cache

    return cache(options.pop("action"), options)


def _plan(options: Options) -> int:
    from .artifacts import load_manifest
    from .runtime.capacity.capacity import check, plan
    from .runtime.options import RuntimeOptions

    manifest = load_manifest(options["artifacts"])
    limits = {name: options[name] for name in ("max_num_seqs", "max_batch_tokens") if name in options}
    planned = plan(manifest, options["memory"], RuntimeOptions(**limits), options.get("context"))
    if options.get("json"):
        sys.stdout.buffer.write(planned.encode())
    else:
        from rich.console import Console

        from .runtime.capacity.table import plan_table

        Console().print(plan_table(planned))
    check(planned)
    return 0


def _sign(options: Options) -> int:
    from .artifacts import load_manifest, verify
    from .artifacts.signature import read_private_key, sign

    directory = options["artifacts"]
    key = read_private_key(options["key"])
    manifest = load_manifest(directory)
    verify(directory, manifest)
    print(sign(directory, manifest.digest, key))
    print(f"digest {manifest.digest}")
    return 0


def _bench(options: Options) -> int:
    from .bench.command import bench

    return bench(options.pop("benchmark"), options, api_key=os.environ.get("ENGINE_API_KEY") or None)


COMMANDS: dict[str, Callable[[Options], int]] = {
    "build": _build,
    "pack": _pack,
    "push": _push,
    "pull": _pull,
    "serve": _serve,
    "generate": _generate,
    "chat": _chat,
    "inspect": _inspect,
    "verify": _verify,
    "tune": _tune,
    "cache": _cache,
    "plan": _plan,
    "sign": _sign,
    "bench": _bench,
}

"""The command line: what it accepts, how it fails, what its help promises."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import engine
from engine.cli import COMMANDS, main, module_of, parse
from engine.errors import BuildError, EngineError, UsageError
from engine.options.runtime import RuntimeOptions


def test_only_given_options_reach_a_command() -> None:
    command, given = parse(["serve", "--artifacts", "a", "--kv-memory", "2GiB", "--threads", "2"])
    assert command == "serve"
    assert given == {"artifacts": Path("a"), "kv_memory": 2 * 1024**3, "threads": 2}


def test_build_options() -> None:
    _, given = parse(["build", "m.gguf", "-o", "out", "--target", "cpu-x86-64-v3", "--quantize", "int4", "--max-context", "512", "--force"])
    assert given == {
        "model": "m.gguf",
        "output": Path("out"),
        "target": "cpu-x86-64-v3",
        "quantize": "int4",
        "max_context": 512,
        "force": True,
    }


def test_stop_texts_add_up() -> None:
    _, given = parse(["generate", "--artifacts", "a", "Hi", "--stop", "x", "--stop", "y"])
    assert given["stop"] == ["x", "y"]


def test_worker_options_state_their_defaults() -> None:
    defaults = RuntimeOptions()
    text = help_of("serve")
    assert f"(default: {defaults.max_num_seqs})" in text
    assert f"(default: {defaults.max_batch_tokens})" in text


def test_build_states_its_defaults() -> None:
    from engine.compiler.options import BuildOptions

    defaults = {field.name: field.default for field in dataclasses.fields(BuildOptions) if isinstance(field.default, str)}
    options = help_of("build").partition(" options: ")[2]
    assert sorted(defaults) == ["kv_dtype", "quantize", "target", "weights"]
    for name, default in defaults.items():
        stated = re.search(rf" --{name.replace('_', '-')} .*?\(default: (.*?)\)", options)
        assert stated is not None
        assert stated[1] == default


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("sevre", "invalid choice: 'sevre'"),
        ("serve", "the following arguments are required: --artifacts"),
        ("serve --art x", "the following arguments are required: --artifacts"),
        ("serve --artifacts x --kv-memory lots", "'lots' is not a size; write 2GiB, 512MB or a number of bytes"),
        ("serve --artifacts x --threads 0", "'0' is not a whole number above 0"),
        ("serve --artifacts x --port http", "invalid int value: 'http'"),
        ("build m -o x --quantize int3", "invalid choice: 'int3'"),
        ("build m -o x --turbo", "unrecognized arguments: --turbo"),
    ],
)
def test_wrong_usage(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    command = line.split()[0] if line and line != "sevre" else ""
    assert captured.err.splitlines()[-1] in (f"hint: engine {command} --help", "hint: engine --help")


def raising(error: BaseException) -> "object":
    def command(_: object) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UsageError("no", hint="yes"), 2, "error: no\nhint: yes\n"),
        (BuildError("it broke"), 5, f"error: it broke\nhint: {BuildError.way_out}\n"),
        (EngineError("odd"), 1, f"error: odd\nhint: {EngineError.way_out}\n"),
        (KeyboardInterrupt(), 130, ""),
        (
            ModuleNotFoundError("No module named 'gguf'", name="gguf"),
            2,
            "error: the package gguf is not installed\nhint: pip install 'engine-llm[build]'\n",
        ),
    ],
)
def test_failures_become_messages_and_exit_codes(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module_of("inspect"), "run", raising(error))
    assert main(["inspect", "x"]) == code
    assert capsys.readouterr() == ("", text)


def test_every_kind_of_error_has_a_way_out() -> None:
    from engine.shipping.hub import BrokenConnectionError  # the only room with kinds of its own

    kinds = _error_types(EngineError)
    assert BrokenConnectionError in kinds
    assert [kind for kind in kinds if "way_out" not in vars(kind)] == []


def test_our_own_bugs_are_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module_of("inspect"), "run", raising(ModuleNotFoundError("No module named 'engine.nonsense'", name="engine.nonsense"))
    )
    with pytest.raises(ModuleNotFoundError):
        main(["inspect", "x"])


def test_the_reader_may_leave() -> None:
    code = "import sys; from engine import cli; from engine.commands import inspect; "
    code += "inspect.run = lambda _: print('x' * 10**6, flush=True); sys.exit(cli.main(['inspect', 'x']))"
    with subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def help_of(*command: str) -> str:
    """A help text as an 80-column terminal shows it, runs of white space made one."""
    run = [sys.executable, "-P", "-m", "engine", *command, "--help"]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"}, cwd="/")
    assert done.stderr == ""
    return " ".join(done.stdout.split())


def test_help_names_every_command_and_exit_code() -> None:
    text = help_of()
    assert [name for name in COMMANDS if f" {name} " not in text] == []
    codes = {error.exit_code for error in _error_types(EngineError)} - {EngineError.exit_code}
    assert [code for code in sorted(codes) if f"{code} " not in text.partition("exit codes:")[2]] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_something(command: str) -> None:
    text = help_of(command)
    options = text.partition("options:")[2]
    assert len(options.split(" --")) > 1
    assert f"usage: engine {command}" in text


def test_version_comes_from_one_place() -> None:
    run = [sys.executable, "-P", "-m", "engine", "--version"]
    assert subprocess.run(run, capture_output=True, text=True, check=True, cwd="/").stdout == f"engine {engine.__version__}\n"


def _error_types(base: type[EngineError]) -> set[type[EngineError]]:
    return {base}.union(*(_error_types(child) for child in base.__subclasses__()))

"""Options classes on the command line: every field is a flag that reads back, in an order that helps."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from engine.bench.benchmarks import BENCHMARKS
from engine.commands.cache import ACTIONS
from engine.commands.parser import Parser, add_options
from engine.errors import UsageError
from engine.options.option import check_choices, option, positional, required, same_as
from engine.options.values import COUNT, OUTPUT, byte_size, number_range


@dataclass(frozen=True, kw_only=True)
class Base:
    size: int | None = option(None, "how much", type=byte_size, metavar="SIZE")
    speed: str = option("slow", "how fast", choices=("slow", "fast"))
    hidden: int = 3


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    model: str = positional("what", metavar="MODEL")
    others: Sequence[str] = positional("what else", default=(), metavar="OTHER")
    several: Sequence[int] = option((), "more than once", **COUNT)
    lengths: tuple[int, int] = option((32, 64), "from, to", type=number_range, metavar="N:M")
    wait: float = option(60.0, "seconds", type=float, metavar="S")
    dry: bool = option(False, "do nothing")
    output: Path = required("where to", **OUTPUT)  # noqa: RUF009


def read(line: str) -> Options:
    parser = Parser(prog="test")
    add_options(parser, Options)
    return Options(**vars(parser.parse_args(line.split())))


def test_what_is_not_given_is_left_to_the_class() -> None:
    assert read("m -o out") == Options(model="m", output=Path("out"))


def test_every_sort_of_flag() -> None:
    line = "m a b --output out --size 2KiB --speed fast --several 1 --several 2 --lengths 8 --wait 0.5 --dry"
    assert read(line) == Options(
        model="m",
        others=["a", "b"],
        output=Path("out"),
        size=2048,
        speed="fast",
        several=[1, 2],
        lengths=(8, 8),
        wait=0.5,
        dry=True,
    )


@pytest.mark.parametrize("line", ["m", "-o out", "m -o out --hidden 4", "m -o out --speed odd", "m -o out --several 0"])
def test_mistakes(line: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(line)
    assert raised.value.hint == "test --help"


def test_required_first_then_its_own_then_its_bases_with_their_defaults() -> None:
    parser = Parser(prog="test")
    add_options(parser, Options)
    text = " ".join(parser.format_help().partition("options:")[2].split())
    flags = [word for word in text.split() if word.startswith("--")]
    assert flags == ["--help", "--output", "--several", "--lengths", "--wait", "--dry", "--size", "--speed"]
    assert [part.partition(")")[0] for part in text.split("(default: ")[1:]] == ["32:64", "60", "slow"]


def test_code_may_not_choose_what_the_command_line_may_not() -> None:
    with pytest.raises(UsageError, match="speed is 'odd'") as raised:
        check_choices(Options(model="m", output=Path("out"), speed="odd"))
    assert raised.value.hint == "it is one of slow, fast"


def test_the_flag_of_another_class() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Other:
        speed: str = same_as(Base, "speed", default="fast")

    (field,) = dataclasses.fields(Other)
    assert field.default == "fast"
    assert field.metadata["choices"] == ("slow", "fast")
    assert field.metadata["help"] == "how fast"


ALL = {
    **{
        name: (f"engine.{module}", name)
        for name, module in {
            "BuildOptions": "compiler.options",
            "PackOptions": "compiler.options",
            "PushOptions": "shipping.options",
            "PullOptions": "shipping.options",
            "ServeOptions": "server.options",
            "TuneOptions": "bench.options",
            "RuntimeOptions": "options.runtime",
            "StoreOptions": "options.store",
            "VerifyOptions": "commands.verify",
            "PlanOptions": "commands.plan",
            "SamplingOptions": "commands.sampling",
        }.items()
    },
    **{f"{name} command": (f"engine.commands.{name}", "Options") for name in ("build", "pull", "generate", "chat", "inspect", "sign")},
}
CLASSES = {name: getattr(import_module(module), cls) for name, (module, cls) in ALL.items()}
CLASSES |= {f"bench {name}": benchmark.options for name, benchmark in BENCHMARKS.items()}
CLASSES |= {f"cache {name}": action.options for name, action in ACTIONS.items()}
NOT_FLAGS = {"worker_command", "serve_arguments", "api_key", "workers", "cpus"}
"""For tests, after `--`, from the environment, and what `--replicas` makes of the machine."""


@pytest.mark.parametrize("name", CLASSES)
def test_every_option_can_be_given(name: str) -> None:
    fields = dataclasses.fields(CLASSES[name])
    assert {field.name for field in fields if "help" not in field.metadata} <= NOT_FLAGS
    assert [field.name for field in fields if field.metadata.get("help") == ""] == []
    add_options(Parser(prog="test"), CLASSES[name])

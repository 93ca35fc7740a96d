"""How an options class declares a flag: its default, what it trades, and how its text is read.

An options class is a frozen dataclass. The command line makes a flag of every field that has a
help text (commands/flags.py); code makes the same options by keyword.
"""

from dataclasses import MISSING, Field, field, fields
from typing import Any

from ..errors import UsageError


def option(default: Any, help: str, **argument: Any) -> Any:
    """A field that is a flag. argument: further settings of the flag, as argparse takes them.

    The default's type says most of them: False makes a switch, an empty tuple a flag that may be given more than once.
    """
    return field(default=default, metadata={"help": help, **argument})


def required(help: str, **argument: Any) -> Any:
    """A flag without a default. flags: its names, where they are not made of the field's."""
    return field(metadata={"help": help, **argument})


def positional(help: str | None = None, *, default: Any = MISSING, **argument: Any) -> Any:
    """An argument without a name."""
    return field(default=default, metadata={"help": help, "positional": True, **argument})


def same_as(options: type, name: str, **changes: Any) -> Any:
    """The flag that another class declares; with `default` or a setting of its own where `changes` has one."""
    found: Field[Any] = next(each for each in fields(options) if each.name == name)
    default = changes.pop("default", found.default)
    return field(default=default, metadata={**found.metadata, **changes})


def check_choices(options: Any) -> None:
    """Raise UsageError for a field whose value is none of its `choices`: code may give any, the command line may not."""
    for each in fields(options):
        choices, value = each.metadata.get("choices"), getattr(options, each.name)
        if choices is not None and value not in (*choices, each.default):
            raise UsageError(f"{each.name} is {value!r}", hint=f"it is one of {', '.join(choices)}")

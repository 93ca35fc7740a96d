"""Command lines as we read them: wrong flags raise UsageError, and options classes declare the flags."""

import argparse
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any, NoReturn

from ..errors import UsageError
from ..options.values import as_typed, text

Given = dict[str, Any]
"""The options that a command line gives, by the names of their fields. Those that are not given are left to their class."""


class Parser(argparse.ArgumentParser):
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


def add_options(parser: Parser, options: type) -> None:
    """An argument for every field of an options class that is declared as one.

    Required ones come first, then those of the class itself, then those of its bases.
    """
    declared = [each for each in _nearest_first(options) if "help" in each.metadata]
    for each in sorted(declared, key=_may_be_left_out):
        _add(parser, each)


def _nearest_first(options: type) -> Iterator[Field[Any]]:
    by_name = {each.name: each for each in fields(options)}
    for cls in options.__mro__:
        for name in vars(cls).get("__annotations__", {}):
            if name in by_name:
                yield by_name.pop(name)


def _may_be_left_out(field: Field[Any]) -> bool:
    return field.default is not MISSING


def _add(parser: Parser, field: Field[Any]) -> None:
    settings: dict[str, Any] = {"type": text, **field.metadata}
    if settings.pop("positional", False):
        if _may_be_left_out(field):
            settings |= {"nargs": "*", "default": field.default}
        parser.add_argument(field.name, **settings)
        return
    names = settings.pop("flags", (f"--{field.name.replace('_', '-')}",))
    if not _may_be_left_out(field):
        settings["required"] = True
    elif field.default is False:
        settings["action"] = "store_true"
        del settings["type"]
    elif field.default == ():
        settings["action"] = "append"
    elif field.default not in (None, ""):
        settings["help"] += f" (default: {as_typed(field.default, settings.get('type'))})"
    parser.add_argument(*names, dest=field.name, **settings)

"""Typed access to the settings of a checkpoint, with errors that name the setting."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..errors import CheckpointError

# No model comes near these; a damaged file must not make us allocate what it says.
MAX_SIZE = 2**24
MAX_LAYERS = 2**12


class Settings:
    """A checkpoint's configuration: `values` by name, read from `source` (a file's name, for messages), on top of `defaults`.

    Every method raises CheckpointError for a value of the wrong type, and for an absent one unless a default is given.
    A null counts as absent.
    """

    def __init__(self, values: Mapping[str, Any], source: str, defaults: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._given = values
        self._defaults = defaults
        self._values = {**defaults, **values}
        self.source = source
        self.known: set[str] = set()
        """Names that were asked for: what has been given and is not among them, nobody has looked at."""

    def __contains__(self, name: str) -> bool:
        return self.raw(name) is not None

    def has_default(self, name: str) -> bool:
        """Whether it is a setting of this type of model, whatever is given."""
        return name in self._defaults

    def raw(self, name: str) -> Any:
        """A value as it is, None if there is none."""
        self.known.add(name)
        return self._values.get(name)

    def ignore(self, *names: str) -> None:
        """These say nothing about this model: they need not be looked at."""
        self.known.update(names)

    def unknown(self) -> dict[str, Any]:
        """What has been given and nobody has asked for."""
        return {name: value for name, value in self._given.items() if name not in self.known}

    def integer(self, name: str, default: int | None = None, *, maximum: int = MAX_SIZE) -> int:
        value = self._get(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._unusable(name, value, "an integer")
        if value > maximum:
            raise self._unusable(name, value, f"at most {maximum}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if not _is_number(value):
            raise self._unusable(name, value, "a finite number")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._unusable(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._unusable(name, value, "a string")
        return value

    def items(self, name: str) -> list[Any]:
        value = self._get(name, None)
        if not isinstance(value, list):
            raise self._unusable(name, value, "a list")
        return value

    def strings(self, name: str) -> list[str]:
        value = self.items(name)
        if not all(isinstance(each, str) for each in value):
            raise self._unusable(name, value, "a list of strings")
        return value

    def numbers(self, name: str) -> list[float]:
        value = self.items(name)
        if not all(map(_is_number, value)):
            raise self._unusable(name, value, "a list of finite numbers")
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self.raw(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.source} does not give {name}", hint="the file is incomplete; fetch the checkpoint again")
        return value

    def _unusable(self, name: str, value: Any, wanted: str) -> CheckpointError:
        return CheckpointError(
            f"{self.source}: {name} is {brief(value)}; it must be {wanted}",
            hint="the file was edited or damaged; fetch the checkpoint again",
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def brief(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

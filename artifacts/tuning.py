"""What `engine tune` finds out, as a small file: which candidates to launch for which sizes on one kind of GPU.

A build that is given the file asks it in place of its policy; only `choices` goes into the keys of
what is compiled. The times that led to them are kept for people.
"""

from pathlib import Path

import msgspec

from ..errors import UsageError

TUNED_VERSION = 1
Choice = list[tuple[int | None, str]]
"""Ranges of sizes, each up to its number (None: all others), and the candidate that serves it."""


class _Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Timing(_Struct, frozen=True, kw_only=True):
    """Median seconds of one launch of each candidate at one size; `refused` gave other results than the policy's choice."""

    size: int
    seconds: dict[str, float]
    refused: list[str] = []


class Tuned(_Struct, frozen=True, kw_only=True):
    """choices: by problem, those that differ from the policy too little to matter included. device: the GPU's name."""

    version: int
    target: str
    device: str
    choices: dict[str, Choice]
    timings: dict[str, list[Timing]] = {}

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def load_tuned(path: Path) -> Tuned:
    """Read a file of `engine tune`. Raises UsageError if it cannot be read or is none."""
    try:
        tuned = msgspec.json.decode(path.read_bytes(), type=Tuned)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="give --tuned a file that `engine tune` wrote") from error
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UsageError(f"{path} is no file of `engine tune`: {error}", hint="make one on a GPU: engine tune DIR -o FILE") from None
    if tuned.version != TUNED_VERSION:
        raise UsageError(f"{path} is of version {tuned.version}, this Engine reads {TUNED_VERSION}", hint="tune again with this version")
    return tuned

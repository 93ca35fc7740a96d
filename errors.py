"""Every error that Engine raises on purpose.

EngineError
+-- UsageError              a flag or argument that cannot work               exit 2
+-- CheckpointError         a checkpoint that is damaged or incomplete         exit 3
+-- UnsupportedModelError   a model this version does not know                 exit 4
+-- BuildError              a stage of the build failed                        exit 5
+-- ArtifactError           an artifact that is damaged or not an artifact     exit 6
|   +-- MismatchError       a whole artifact that does not fit this machine,   exit 7
|                           or a checkpoint
+-- WorkerError             the worker process failed                          exit 8
+-- RequestError            one request that cannot be served (HTTP 4xx/5xx)   exit 9
+-- DeviceError             the GPU or its driver refused or failed            exit 10
+-- TransferError           a push or a pull did not succeed                   exit 11
"""

from collections.abc import Sequence
from dataclasses import dataclass


class EngineError(Exception):
    """A failure with a message for a person and a way out: `str(error)` is the message followed by a `hint:` line.

    way_out: the hint of errors of a kind that were raised without one of their own.
    """

    exit_code = 1
    way_out = "if it comes again, report it with the command line and what was printed"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.way_out

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}"


def split_hint(text: str) -> tuple[str, str | None]:
    """Message and hint of an error that another process told as text."""
    message, _, hint = text.partition("\nhint: ")
    return message, hint or None


class UsageError(EngineError):
    exit_code = 2
    way_out = "`engine COMMAND --help` explains every option"


class CheckpointError(EngineError):
    exit_code = 3
    way_out = "download the checkpoint again, or ask whoever made it"


class UnsupportedModelError(EngineError):
    exit_code = 4
    way_out = "docs/models.md lists what is supported"


class BuildError(EngineError):
    exit_code = 5
    way_out = "run again with --debug-dump DIR, and report it with what is written there"


class ArtifactError(EngineError):
    exit_code = 6
    way_out = "build the artifact again, or fetch it again from where it came"


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """One row of a mismatch table: what the artifact wants, what this machine (or whatever it is compared with) has."""

    field: str
    artifact: str
    machine: str


class MismatchError(ArtifactError):
    """An artifact that is whole but was made for something else; prints one row per field. other: what it does not fit."""

    exit_code = 7
    way_out = "build the artifact for what it is to run on: engine build CHECKPOINT --target T -o DIR"

    def __init__(self, message: str, misfits: Sequence[Misfit], *, other: str = "this machine", hint: str | None = None) -> None:
        self.misfits = tuple(misfits)
        rows = [("field", "artifact", other)]
        rows += [(m.field, m.artifact, m.machine) for m in misfits]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        table = "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
        super().__init__(f"{message}\n{table}", hint=hint)


class WorkerError(EngineError):
    exit_code = 8
    way_out = "the worker's own messages are above"


class RequestError(EngineError):
    """A request that cannot be served.

    status: the HTTP status to answer with. param: the request field at fault, if one is.
    code: a short machine-readable word (`context_length_exceeded`), as OpenAI's errors carry. retry_after: seconds until it may well be
    served, None where nobody knows.
    """

    exit_code = 9
    way_out = "docs/api.md lists what a request may ask for"

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        hint: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after


class DeviceError(EngineError):
    """The NVIDIA driver is missing, or one of its functions failed. code: its CUresult, None where no function was called."""

    exit_code = 10
    way_out = "nvidia-smi says whether GPU and driver work; try again, or on another machine"
    code: int | None = None

    def __init__(self, message: str, *, code: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class TransferError(EngineError):
    """Something on the way to or from a hub: it is missing, refuses, cannot be reached, or there is no room here."""

    exit_code = 11
    way_out = "run the same command again: it goes on where it stopped"

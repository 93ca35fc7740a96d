"""A worker's last words, as the error that it raised."""

from ... import errors
from ...errors import EngineError, WorkerError
from ...protocol import Failed


def as_error(failed: Failed) -> EngineError:
    """An error of the worker's type, made without running that type's constructor."""
    kind = getattr(errors, failed.error, WorkerError)
    if not (isinstance(kind, type) and issubclass(kind, EngineError)):
        kind = WorkerError
    error: EngineError = kind.__new__(kind)
    EngineError.__init__(error, failed.message, hint=failed.hint)
    error.exit_code = failed.exit_code
    if isinstance(error, errors.MismatchError):
        error.misfits = ()
    return error

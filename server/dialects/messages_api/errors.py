"""Errors as Anthropic's clients expect them."""

from typing import Literal

import msgspec

from ....errors import EngineError, RequestError

PATH = "/v1/messages"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class Problem(msgspec.Struct):
    type: str
    message: str


class MessagesError(msgspec.Struct):
    error: Problem
    type: Literal["error"] = "error"


def messages_error(error: EngineError) -> MessagesError:
    """There is no field for the parameter at fault, so the message begins with it."""
    status, param = (error.status, error.param) if isinstance(error, RequestError) else (500, None)
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return MessagesError(Problem(kind, f"{param}: {error}" if param else str(error)))


def is_messages_path(path: str) -> bool:
    return path == PATH or path.startswith(f"{PATH}/")

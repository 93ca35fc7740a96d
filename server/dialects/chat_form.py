"""Other APIs' requests as requests for chat completions, so that whatever those can do is done for all in one way."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...errors import RequestError
from .decoding import checked
from .params import GenerationParams
from .schemas import ChatRequest


def chat_request(request: GenerationParams, **fields: Any) -> ChatRequest:
    """A chat request with these fields and the sampling of a request of another API. Raises RequestError."""
    sampling = {name: getattr(request, name) for name in GenerationParams.__struct_fields__}
    return checked(ChatRequest(**{**sampling, **fields}), ChatRequest)


@contextmanager
def naming(fields: Mapping[str, str]) -> Iterator[None]:
    """Errors that name a chat request's field name the one that it was made from.

    fields: those that have other names; those that begin with a dot are within others.
    """
    try:
        yield
    except RequestError as error:
        if error.param is not None:
            name = _renamed(error.param, fields)
            error.message, error.param = error.message.replace(error.param, name), name
        raise


def _renamed(param: str, fields: Mapping[str, str]) -> str:
    for name, other in fields.items():
        if name.startswith("."):
            param = param.replace(name, other)
        elif re.match(rf"{name}\b", param):
            return other
    return param

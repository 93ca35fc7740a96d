"""Other APIs' requests as requests for chat completions, so that whatever those can do is done for all in one way."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...errors import RequestError
from .params import GenerationParams
from .schemas import ChatRequest, checked


def chat_request(request: GenerationParams, **fields: Any) -> ChatRequest:
    """A chat request with these fields and the sampling of a request of another API. Raises RequestError."""
    sampling = {name: getattr(request, name) for name in GenerationParams.__struct_fields__}
    return checked(ChatRequest(**{**sampling, **fields}), ChatRequest)


@contextmanager
def naming(fields: Mapping[str, str]) -> Iterator[None]:
    """Errors that name a chat request's field name the one that it was made from. fields: those that have other names."""
    try:
        yield
    except RequestError as error:
        root = re.match(r"\w*", error.param or "")
        if error.param and root and (name := fields.get(root[0])):
            error.message = error.message.replace(error.param, name)
            error.param = name
        raise

"""POST /v1/embeddings"""

import base64
import time
import uuid
from array import array
from typing import Annotated

from fastapi import Depends
from starlette.responses import Response

from ...errors import RequestError
from ..http.body import JsonBody
from ..http.errors import json_response
from ..service import Served
from ..text.whole_texts import Tokens
from ..texts import Texts, count
from .text_answers import Embedding, Embeddings, TextUsage
from .text_requests import EmbeddingRequest


async def embeddings(service: Served, request: Annotated[EmbeddingRequest, Depends(JsonBody(EmbeddingRequest))]) -> Response:
    """A vector of every text."""
    texts = service.texts_for("embed", request.model)
    tokens = await _tokens(texts, request)
    dimensions = request.dimensions or 0
    texts.check_dimensions(dimensions)
    found = await texts.vectors(tokens, dimensions=dimensions, raw=request.use_activation is False)
    written = numbers if request.encoding_format == "float" else as_base64
    used = count(tokens)
    data = [Embedding(index, written(vector)) for index, vector in enumerate(found)]
    return json_response(Embeddings(f"embd-{uuid.uuid4().hex}", int(time.time()), data, service.model, TextUsage(used, used)))


async def _tokens(texts: Texts, request: EmbeddingRequest) -> list[Tokens]:
    inputs, truncate = request.inputs(), request.truncate_prompt_tokens
    given = [text for text in inputs if isinstance(text, str)]
    if given:
        return await texts.encode(given, prompt=texts.prompt(request.prompt_name), truncate=truncate, param="input")
    if request.prompt_name is not None:
        raise RequestError("prompt_name is for texts, and the input is tokens", param="prompt_name", hint="leave it out, or give texts")
    limit = texts.limit(truncate)
    tokens = [Tokens(ids[:limit]) for ids in inputs if not isinstance(ids, str)]
    texts.check(tokens, "input")
    return tokens


def numbers(vector: bytes) -> list[float]:
    return array("f", vector).tolist()


def as_base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()

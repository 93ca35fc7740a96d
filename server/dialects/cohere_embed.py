"""POST /v2/embed, as Cohere has it"""

import uuid
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Depends
from msgspec import Meta
from starlette.responses import Response

from ..http.body import JsonBody
from ..http.errors import json_response
from ..service import Served
from ..texts import count
from .embeddings import as_base64, numbers
from .text_requests import Positive, Texts

EmbeddingType = Literal["float", "base64", "binary", "ubinary"]
_PROMPTS = {"search_query": "query", "search_document": "document"}
"""Prompts of a checkpoint, by the types that they are for; the others have the names of their types."""


class CohereEmbedRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """truncate: which end of a text that is too long is cut off. output_dimension: as `dimensions` of /v1/embeddings."""

    texts: Texts
    model: str | None = None
    input_type: Literal["search_query", "search_document", "classification", "clustering"] | None = None
    embedding_types: Annotated[list[EmbeddingType], Meta(min_length=1)] = msgspec.field(default_factory=lambda: ["float"])
    output_dimension: Positive | None = None
    truncate: Literal["START", "END", "NONE"] = "END"


class BilledUnits(msgspec.Struct):
    input_tokens: int
    image_tokens: int = 0


class ApiVersion(msgspec.Struct):
    version: str = "2"


class AnswerMeta(msgspec.Struct):
    billed_units: BilledUnits
    api_version: ApiVersion = msgspec.field(default_factory=ApiVersion)


class CohereEmbeddings(msgspec.Struct):
    """embeddings: of every text, by their types."""

    id: str
    embeddings: dict[EmbeddingType, list[Any]]
    texts: list[str]
    meta: AnswerMeta


async def cohere_embed(service: Served, request: Annotated[CohereEmbedRequest, Depends(JsonBody(CohereEmbedRequest))]) -> Response:
    """A vector of every text, in several types."""
    texts = service.texts_for("embed", request.model)
    dimensions = request.output_dimension or 0
    texts.check_dimensions(dimensions)
    prompt = "" if request.input_type is None else texts.usual_prompt(_PROMPTS.get(request.input_type, request.input_type))
    truncate = None if request.truncate == "NONE" else -1
    tokens = await texts.encode(request.texts, prompt=prompt, truncate=truncate, keeps_end=request.truncate == "START", param="texts")
    found = await texts.vectors(tokens, dimensions=dimensions)
    written = {kind: [_WRITERS[kind](vector) for vector in found] for kind in request.embedding_types}
    return json_response(CohereEmbeddings(uuid.uuid4().hex, written, request.texts, AnswerMeta(BilledUnits(count(tokens)))))


def _bits(vector: bytes) -> list[int]:
    """One bit per number, whether it is above 0, eight in a byte, the first one highest."""
    bits: Sequence[bool] = [value > 0 for value in array("f", vector)]
    return [sum(bit << (7 - place) for place, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8)]


_WRITERS: Mapping[EmbeddingType, Callable[[bytes], Any]] = {
    "float": numbers,
    "base64": as_base64,
    "binary": lambda vector: [byte - 128 for byte in _bits(vector)],
    "ubinary": _bits,
}

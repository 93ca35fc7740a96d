"""POST /v1/responses, and what is there about a response that is stored."""

from dataclasses import replace
from functools import partial
from typing import Annotated

import msgspec
from fastapi import Depends
from starlette.requests import Request
from starlette.responses import Response

from ....errors import RequestError
from ...http.answering import answer
from ...http.body import JsonBody
from ...http.errors import json_response
from ...service import Served
from ..chat import chat_ask
from ..chat_form import naming
from ..logprobs import LogprobWriter
from .answers import Deleted, ItemList, ResponseObject
from .items import Item, items_of
from .schema import ResponsesRequest
from .store import ResponseStore, Stored
from .translate import FIELDS, as_chat
from .writer import ResponseWriter

MAX_LISTED = 100


async def create_response(
    http: Request, service: Served, request: Annotated[ResponsesRequest, Depends(JsonBody(ResponsesRequest))]
) -> Response:
    """The next items of a conversation, as OpenAI's newer API has it."""
    request.check()
    history = _history(_store(http), request.previous_response_id)
    given = items_of(request.input)
    with naming(FIELDS):
        ask = replace(await chat_ask(service, as_chat(request, history, given)), param="input", limit_param="max_output_tokens")
    keep = partial(_keep, _store(http), [*history, *given]) if request.is_stored() else _forget
    logprobs = LogprobWriter(service.text.token_bytes) if request.wants_logprobs() else None
    writer = ResponseWriter(service.model, ask, request, logprobs, keep)
    return await answer(service, ask, writer, stream=bool(request.stream))


async def get_response(http: Request, id: str) -> Response:
    """A response that is stored."""
    stored = _store(http).get(id)
    if http.query_params.get("stream") == "true":
        raise RequestError("a response that is there is not streamed", param="stream", hint="leave it out")
    return Response(stored.response, media_type="application/json")


async def delete_response(http: Request, id: str) -> Response:
    """It is forgotten."""
    _store(http).delete(id)
    return json_response(Deleted(id))


async def cancel_response(http: Request, id: str) -> Response:
    """Only responses in the background could be, and there are none: close the connection of the others."""
    _store(http).get(id)
    raise RequestError(
        "only a response in the background can be cancelled, and this one is over",
        param="response_id",
        hint="a request ends when its client closes the connection",
    )


async def list_input_items(http: Request, id: str) -> Response:
    """Those of the responses that it goes on from as well, the last one first unless asked otherwise."""
    items = _store(http).get(id).input_items()
    query = http.query_params
    if query.get("order") != "asc":
        items.reverse()
    if after := query.get("after"):
        places = [i for i, item in enumerate(items) if item["id"] == after]
        if not places:
            raise RequestError(f"there is no item {after!r}", param="after", hint="give the id of an item of this list")
        items = items[places[0] + 1 :]
    limit = query.get("limit", "20")
    if not limit.isdecimal() or not 1 <= int(limit) <= MAX_LISTED:
        raise RequestError(f"limit must be a number from 1 to {MAX_LISTED}", param="limit", hint="leave it out for 20")
    shown = items[: int(limit)]
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return json_response(ItemList(shown, first, last, len(shown) < len(items)))


def _store(http: Request) -> ResponseStore:
    store: ResponseStore = http.app.state.responses
    return store


def _history(store: ResponseStore, id: str | None) -> list[Item]:
    if id is None:
        return []
    try:
        return store.get(id).conversation()
    except RequestError as error:
        raise RequestError(
            error.message, param="previous_response_id", code="previous_response_not_found", hint=f"{error.hint}; or send all items again"
        ) from None


def _keep(store: ResponseStore, items: list[Item], response: ResponseObject) -> None:
    named = [{"id": f"item_{response.id.removeprefix('resp_')}_{i}", **item} for i, item in enumerate(items)]
    store.put(response.id, Stored(msgspec.json.encode(response), msgspec.json.encode(named)))


def _forget(response: ResponseObject) -> None:
    """It is not stored."""

"""POST /v1/messages and /v1/messages/count_tokens"""

from dataclasses import replace
from typing import Annotated

from fastapi import Depends
from starlette.responses import Response

from ...http.answering import answer
from ...http.body import JsonBody
from ...http.errors import json_response
from ...service import Served, Service
from ..chat import chat_ask
from ..chat_form import naming
from ..planning import Ask
from .answers import TokenCount
from .schema import MessagesRequest
from .translate import FIELDS, as_chat
from .writer import MessageWriter

Body = Annotated[MessagesRequest, Depends(JsonBody(MessagesRequest))]


async def create_message(service: Served, request: Body) -> Response:
    """The next message of a conversation, as Anthropic's API has it."""
    ask = await _ask(service, request)
    writer = MessageWriter(service.model, ask, shows_thinking=request.shows_thinking())
    return await answer(service, ask, writer, stream=bool(request.stream))


async def count_tokens(service: Served, request: Body) -> Response:
    """The tokens of a conversation, also of one that does not fit."""
    ask = await _ask(service, request, fits=False)
    return json_response(TokenCount(len(ask.prompts[0].tokens)))


async def _ask(service: Service, request: MessagesRequest, *, fits: bool = True) -> Ask:
    with naming(FIELDS):
        return replace(await chat_ask(service, as_chat(request), fits=fits, must_bound=False), may_exceed=True)

"""POST /tokenize and /detokenize, GET /tokenizer_info"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import msgspec
from fastapi import Depends
from starlette.responses import Response

from ...errors import RequestError
from ..dialects.answers import AddedToken, Text, TokenizerInfo, Tokens
from ..dialects.schemas import DetokenizeRequest, TokenizeRequest
from ..offload import offload
from ..service import Served
from .body import JsonBody
from .errors import json_response

SLICE = 4_000
"""Tokens that take less than a millisecond to write."""


async def tokenize(service: Served, request: Annotated[TokenizeRequest, Depends(JsonBody(TokenizeRequest))]) -> Response:
    """Token ids of a text, or of a conversation as the chat template writes it."""
    request.check()
    service.check_model(request.model)
    if request.messages is not None:
        prompt = await service.encode_chat(
            request.messages,
            request.chat_template_kwargs,
            tools=request.tools or (),
            add_generation_prompt=request.add_generation_prompt is not False,
            continue_final_message=bool(request.continue_final_message),
            add_special_tokens=bool(request.add_special_tokens),
            fits=False,
        )
        tokens = prompt.tokens
    else:
        (tokens,) = await service.encode_prompts(
            [request.prompt or ""], add_special_tokens=request.add_special_tokens is not False, fits=False
        )
    names = service.text.names if request.return_token_strs else None
    return await offload(len(tokens), partial(_answer, tokens, service.limits.max_context, names))


async def detokenize(service: Served, request: Annotated[DetokenizeRequest, Depends(JsonBody(DetokenizeRequest))]) -> Response:
    """The text of token ids."""
    service.check_model(request.model)
    most = await offload(len(request.tokens), partial(max, request.tokens, default=0))
    if most >= service.limits.vocab_size:
        raise RequestError(
            f"token {most} is not in the vocabulary of {service.limits.vocab_size} tokens",
            param="tokens",
            hint="POST /tokenize tells the tokens of a text",
        )
    return json_response(Text(await service.decode(request.tokens)))


async def tokenizer_info(service: Served) -> Response:
    """The special tokens and the chat template."""
    text = service.text
    special = text.token_bytes.special_texts
    added = {id: AddedToken(content, id in special) for content, id in text.added_tokens().items()}
    bos, eos, unk, pad = (text.spec.special_tokens.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token"))
    template = None if text.template is None else text.template.source
    return json_response(TokenizerInfo(service.limits.max_context, added, template, bos, eos, unk, pad))


def _answer(tokens: Sequence[int], max_context: int, names: Callable[[Sequence[int]], list[str]] | None) -> Response:
    strs = None if names is None else _json_list(tokens, names)
    return json_response(Tokens(_json_list(tokens, list), len(tokens), max_context, strs))


def _json_list(tokens: Sequence[int], of: Callable[[Sequence[int]], list[Any]]) -> Any:
    """A list of what `of` makes of tokens, written a slice at a time: other threads run in between, and no long list has to be freed."""
    slices = (tokens[begin : begin + SLICE] for begin in range(0, len(tokens), SLICE))
    written = b",".join(msgspec.json.encode(of(each))[1:-1] for each in slices)
    return msgspec.Raw(b"".join((b"[", written, b"]")))

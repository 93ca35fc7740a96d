"""POST /tokenize and /detokenize"""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from ...errors import RequestError
from ..dialects.schemas import DetokenizeRequest, TokenizeRequest
from ..service import Service, offload
from .body import read_request
from .errors import json_response


async def tokenize(http: Request) -> Response:
    service: Service = http.app.state.service
    request = await read_request(http, TokenizeRequest)
    request.check()
    service.check_model(request.model)
    if request.messages is not None:
        tokens = await service.encode_chat(
            request.messages,
            request.chat_template_kwargs,
            add_generation_prompt=request.add_generation_prompt is not False,
            continue_final_message=bool(request.continue_final_message),
            add_special_tokens=bool(request.add_special_tokens),
            fits=False,
        )
    else:
        (tokens,) = await service.encode_prompts(
            [request.prompt or ""], add_special_tokens=request.add_special_tokens is not False, fits=False
        )
    answer = {"tokens": tokens, "count": len(tokens), "max_model_len": service.limits.max_context}
    if request.return_token_strs:
        answer["token_strs"] = await offload(len(tokens), partial(service.text.names, tokens))
    return json_response(answer)


async def detokenize(http: Request) -> Response:
    service: Service = http.app.state.service
    request = await read_request(http, DetokenizeRequest)
    service.check_model(request.model)
    if wrong := [token for token in request.tokens if token >= service.limits.vocab_size]:
        raise RequestError(
            f"token {wrong[0]} is not in the vocabulary of {service.limits.vocab_size} tokens",
            param="tokens",
            hint="POST /tokenize tells the tokens of a text",
        )
    return json_response({"prompt": await service.decode(request.tokens)})

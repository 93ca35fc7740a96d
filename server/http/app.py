"""The HTTP application: which path is answered by what, and with what."""

from fastapi import FastAPI, Security, params
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from ...errors import EngineError
from ...version import __version__
from ..dialects.answers import (
    Answer,
    ChatChoice,
    ChatChunkChoice,
    CompletionChoice,
    ModelCard,
    ModelList,
    Text,
    TokenizerInfo,
    Tokens,
    Version,
)
from ..dialects.chat import chat_completions
from ..dialects.completions import completions
from ..options import ServeOptions
from ..service import Service
from .access import LOCAL_ORIGIN, AccessMiddleware, is_loopback
from .auth import ApiKey
from .disconnect import ClientDisconnectedError, WatchedRoute
from .errors import on_bug, on_disconnect, on_engine_error, on_http_error
from .later import LaterEndpoints
from .openapi import Endpoint, docs, openapi
from .page_api import no_page, page
from .status_api import health, metrics, model, models, version
from .tokens_api import detokenize, tokenize, tokenizer_info

ENDPOINTS = (
    Endpoint("POST", "/v1/chat/completions", chat_completions, Answer[ChatChoice], events=Answer[ChatChunkChoice]),
    Endpoint("POST", "/v1/completions", completions, Answer[CompletionChoice], events=Answer[CompletionChoice]),
    Endpoint("GET", "/v1/models", models, ModelList),
    Endpoint("GET", "/v1/models/", models, ModelList, hidden=True),
    Endpoint("GET", "/v1/models/{name:path}", model, ModelCard),
    Endpoint("POST", "/tokenize", tokenize, Tokens),
    Endpoint("POST", "/detokenize", detokenize, Text),
    Endpoint("GET", "/tokenizer_info", tokenizer_info, TokenizerInfo),
    Endpoint("GET", "/health", health, dict, keyless=True),
    Endpoint("GET", "/version", version, Version),
    Endpoint("GET", "/metrics", metrics, str, keyless=True),
    Endpoint("GET", "/docs", docs, str, keyless=True, hidden=True),
    Endpoint("GET", "/openapi.json", openapi, dict, keyless=True, hidden=True),
)
_NO_TELEMETRY = TelemetryConfig(tracing=False, metrics=False, logs=False, operation_spans=False, auto_configure=False)
"""FastAPI would otherwise send traces where a variable of the environment says."""


def build_app(service: Service, options: ServeOptions) -> FastAPI:
    app = FastAPI(
        title="Engine",
        version=__version__,
        openapi_url=None,
        telemetry=_NO_TELEMETRY,
        generate_unique_id_function=lambda route: route.name,
        middleware=_middleware(options),
        exception_handlers={
            EngineError: on_engine_error,
            HTTPException: on_http_error,
            ClientDisconnectedError: on_disconnect,
            Exception: on_bug,
        },
    )
    app.router.route_class = WatchedRoute
    app.state.service = service
    key: list[params.Depends] = [Security(ApiKey(options.api_key))] if options.api_key else []
    home = Endpoint("GET", "/", no_page if options.no_page else page, str, keyless=True, hidden=True)
    for endpoint in (*ENDPOINTS, home):
        endpoint.add_to(app, [] if endpoint.keyless else key)
    app.state.endpoints = ENDPOINTS
    app.state.later = LaterEndpoints(app, key)
    return app


def _middleware(options: ServeOptions) -> list[Middleware]:
    """Outermost first."""
    local = is_loopback(options.host)
    found = [Middleware(AccessMiddleware, hosts=(options.host, *options.allow_host), origins=options.allow_origin)] if local else []
    if local or options.allow_origin:
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=options.allow_origin,
                allow_origin_regex=LOCAL_ORIGIN if local else None,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "request-id", "retry-after"],
            )
        )
    return found

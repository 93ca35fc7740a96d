"""The HTTP application: which path is answered by what."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from ...errors import EngineError
from ..dialects.chat import chat_completions
from ..dialects.completions import completions
from ..options import ServeOptions
from ..service import Service
from .access import LOCAL_ORIGIN, AccessMiddleware, is_loopback
from .auth import ApiKeyMiddleware
from .disconnect import ClientDisconnectedError
from .errors import on_bug, on_disconnect, on_engine_error, on_http_error
from .page_api import no_page, page
from .status_api import health, metrics, model, models, version
from .tokens_api import detokenize, tokenize

ROUTES = (
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/models", models),
    Route("/v1/models/", models),
    Route("/v1/models/{name:path}", model),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/health", health),
    Route("/version", version),
    Route("/metrics", metrics),
)


def build_app(service: Service, options: ServeOptions) -> Starlette:
    app = Starlette(
        routes=(*ROUTES, Route("/", no_page if options.no_page else page)),
        middleware=_middleware(options),
        exception_handlers={
            EngineError: on_engine_error,
            HTTPException: on_http_error,
            ClientDisconnectedError: on_disconnect,
            Exception: on_bug,
        },
    )
    app.state.service = service
    return app


def _middleware(options: ServeOptions) -> list[Middleware]:
    """Outermost first: a browser's preflight carries no key."""
    local = is_loopback(options.host)
    found = [Middleware(AccessMiddleware, hosts=(options.host, *options.allow_host), origins=options.allow_origin)] if local else []
    if local or options.allow_origin:
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=options.allow_origin,
                allow_origin_regex=LOCAL_ORIGIN if local else None,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after"],
            )
        )
    if options.api_key:
        found.append(Middleware(ApiKeyMiddleware, api_key=options.api_key))
    return found

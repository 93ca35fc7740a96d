"""The HTTP application: which path is answered by what."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from ...errors import EngineError
from ..dialects.chat import chat_completions
from ..dialects.completions import completions
from ..service import Service
from .auth import ApiKeyMiddleware
from .disconnect import ClientDisconnectedError
from .errors import on_bug, on_disconnect, on_engine_error, on_http_error
from .status_api import health, metrics, model, models, version
from .tokens_api import detokenize, tokenize

ROUTES = (
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/models", models),
    Route("/v1/models/{name:path}", model),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/health", health),
    Route("/version", version),
    Route("/metrics", metrics),
)


def build_app(service: Service, api_key: str | None) -> Starlette:
    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(ApiKeyMiddleware, api_key=api_key)] if api_key else [],
        exception_handlers={
            EngineError: on_engine_error,
            HTTPException: on_http_error,
            ClientDisconnectedError: on_disconnect,
            Exception: on_bug,
        },
    )
    app.state.service = service
    return app

"""Adds endpoints to the application when one of them is first asked for: importing all of them takes a tenth of a start."""

from collections.abc import Sequence

from fastapi import FastAPI, params
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from .openapi import Endpoint

PATHS = ("/v1/messages", "/v1/responses", "/v1/embeddings", "/v2/embed", "/v1/rerank", "/rerank", "/v1/score", "/score")
"""Where they lie, and below."""


class LaterEndpoints:
    """Stands in their place until then. dependencies: of all of them."""

    def __init__(self, app: FastAPI, dependencies: Sequence[params.Depends]) -> None:
        self._app = app
        self._dependencies = dependencies
        self._places = [Route(path + below, self) for path in PATHS for below in ("", "/{below:path}")]
        app.router.routes.extend(self._places)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.add()
        scope["path_params"] = {}
        await self._app.router(scope, receive, send)

    def add(self) -> Sequence[Endpoint]:
        """All of them, which are there from now on."""
        from .later_endpoints import ENDPOINTS

        if self._places:
            from ..dialects.responses_api.store import ResponseStore

            self._app.state.responses = ResponseStore()
            for place in self._places:
                self._app.router.routes.remove(place)
            self._places = []
            for endpoint in ENDPOINTS:
                endpoint.add_to(self._app, self._dependencies)
        return ENDPOINTS

"""What the API looks like, as an OpenAPI document and as a page that shows it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import msgspec
from fastapi import FastAPI, params
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ..dialects.answers import ErrorAnswer
from ..dialects.field_docs import field_docs
from ..dialects.messages_api.errors import MessagesError, is_messages_path
from .body import JsonBody
from .errors import json_response

PAGE = "docs.html"
_REF = "#/components/schemas/{name}"


@dataclass(frozen=True)
class Endpoint:
    """A path and what answers it.

    answer: the type of a whole answer, str for plain text. events: of the events of a stream, if there may be one.
    keyless: answered without the API key. hidden: not in the document.
    What a handler reads from the body, it says by its `JsonBody`.
    """

    method: str
    path: str
    handler: Callable[..., Any]
    answer: Any
    events: Any = None
    keyless: bool = False
    hidden: bool = False

    def add_to(self, app: FastAPI, dependencies: Sequence[params.Depends]) -> None:
        def add(method: str, *, in_schema: bool) -> None:
            app.add_api_route(
                self.path, self.handler, methods=[method], dependencies=dependencies, response_model=None, include_in_schema=in_schema
            )

        add(self.method, in_schema=not self.hidden)
        if self.method == "GET":
            add("HEAD", in_schema=False)


async def openapi(http: Request) -> Response:
    """The document, made when it is first asked for."""
    app: FastAPI = http.app
    if app.openapi_schema is None:
        later = app.state.later.add()
        app.openapi_schema = document(app, [*app.state.endpoints, *later])
    return json_response(app.openapi_schema)


async def docs(_http: Request) -> Response:
    """A page that shows the document, and loads nothing from elsewhere."""
    return HTMLResponse(files(__package__).joinpath(PAGE).read_bytes())


def document(app: FastAPI, endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """FastAPI says which paths there are and what they take besides a body; the types of bodies and answers are msgspec's."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = _Schemas()
    bodies = {route.path: _body(route) for route in app.routes if isinstance(route, APIRoute)}
    for endpoint in endpoints:
        if endpoint.hidden:
            continue
        operation = found["paths"][endpoint.path.replace(":path", "")][endpoint.method.lower()]
        if (body := bodies[endpoint.path]) is not None:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schemas.of(body)}}}
        content = {"text/plain" if endpoint.answer is str else "application/json": {"schema": schemas.of(endpoint.answer)}}
        if endpoint.events is not None:
            content["text/event-stream"] = {"schema": schemas.of(endpoint.events)}
        refusal = schemas.of(MessagesError if is_messages_path(endpoint.path) else ErrorAnswer)
        error = {"description": "Not served", "content": {"application/json": {"schema": refusal}}}
        operation["responses"] = {"200": {"description": "Served", "content": content}, "default": error}
    for body in filter(None, bodies.values()):
        schemas.explain(body)
    found["components"] = {**found.get("components", {}), "schemas": schemas.components}
    return found


def _body(route: APIRoute) -> type[msgspec.Struct] | None:
    kinds = [each.call.kind for each in route.dependant.dependencies if isinstance(each.call, JsonBody)]
    return kinds[0] if kinds else None


class _Schemas:
    """JSON schemas of types. components: of those that have a name, by it."""

    def __init__(self) -> None:
        self.components: dict[str, Any] = {}

    def of(self, kind: Any) -> dict[str, Any]:
        (schema,), components = msgspec.json.schema_components([kind], ref_template=_REF)
        assert all(self.components.get(name, found) == found for name, found in components.items()), "two types have one name"
        self.components |= components
        return schema

    def explain(self, kind: type[msgspec.Struct]) -> None:
        """Add what is said about the fields of a type that has been asked for."""
        for name, text in field_docs(kind).items():
            self.components[kind.__name__]["properties"][name]["description"] = text

"""The API's own description."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from artifact_stand_in import MODEL, write_artifact
from serving_process import ServingProcess

from engine.server.dialects.field_docs import field_docs
from engine.server.dialects.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from engine.server.http.app import ENDPOINTS
from engine.server.http.later_endpoints import ENDPOINTS as LATER

BODIES = {
    "/v1/chat/completions": ChatRequest(messages=[]),
    "/v1/completions": CompletionRequest(prompt=""),
    "/tokenize": TokenizeRequest(),
    "/detokenize": DetokenizeRequest(tokens=[]),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    with ServingProcess(write_artifact(tmp_path_factory.mktemp("server") / "artifact"), api_key="k") as server:
        yield server.ready()


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(found := value.get("$ref"), str):
            yield found
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_the_document_has_every_endpoint_and_type(server: ServingProcess) -> None:
    document = server.http.get("/openapi.json", headers={"authorization": ""}).json()
    assert document["openapi"].startswith("3.1")
    said = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert said == {(each.method, each.path.replace(":path", "")) for each in (*ENDPOINTS, *LATER) if not each.hidden}
    schemas = document["components"]["schemas"]
    assert {reference.removeprefix("#/components/schemas/") for reference in references(document)} == set(schemas)
    for path, request in BODIES.items():
        operation, name = document["paths"][path]["post"], type(request).__name__
        assert operation["requestBody"]["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{name}"}
        assert list(schemas[name]["properties"]) == list(msgspec.structs.asdict(request))
        docs = {field: each["description"] for field, each in schemas[name]["properties"].items() if "description" in each}
        assert docs == field_docs(type(request))
        assert operation["security"] == [{"API key": []}]
    assert "security" not in document["paths"]["/health"]["get"]


def test_the_page_loads_nothing_from_elsewhere(server: ServingProcess) -> None:
    response = server.http.get("/docs", headers={"authorization": ""})
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert not re.search(r"(src|href)\s*=\s*\"?(https?:)?//|url\(|import ", response.text)
    assert 'fetch("openapi.json")' in response.text


def test_what_probes_ask_with(server: ServingProcess) -> None:
    for path in ("/health", "/v1/models", f"/v1/models/{MODEL}", "/docs"):
        head, get = server.http.head(path), server.http.get(path)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(get.content)))

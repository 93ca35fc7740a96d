"""Which hosts may be asked, which web pages may ask, and what a browser is told before it does."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from artifact_stand_in import write_artifact
from serving_process import ServingProcess

from engine.server.http.access import is_loopback

PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,authorization"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("access") / "artifact")


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[ServingProcess]:
    """With nothing said about who may ask."""
    with ServingProcess(artifact, api_key="key") as server:
        yield server.ready()


@pytest.fixture(scope="module")
def opened(artifact: Path) -> Iterator[ServingProcess]:
    with ServingProcess(artifact, allow_origin=["https://app.example"], allow_host=["My.Name"]) as server:
        yield server.ready()


def ask(server: ServingProcess, **headers: str) -> httpx.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}, headers=given)


def preflight(server: ServingProcess, origin: str) -> httpx.Response:
    return server.http.options("/v1/completions", headers={**PREFLIGHT, "origin": origin, "authorization": ""})


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "[::1", "my.name"])
def test_a_name_that_was_made_to_lead_here(server: ServingProcess, host: str) -> None:
    response = ask(server, host=host)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "host_not_allowed")
    assert "--allow-host" in response.json()["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:8000", "192.168.1.7:8000"])
def test_this_machine_by_any_of_its_names(server: ServingProcess, host: str) -> None:
    assert ask(server, host=host).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1.evil.example"])
def test_a_foreign_page(server: ServingProcess, origin: str) -> None:
    response = ask(server, origin=origin)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert "--allow-origin" in response.json()["error"]["message"]
    assert "access-control-allow-origin" not in preflight(server, origin).headers


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "https://[::1]:8443"])
def test_a_page_of_this_machine_may_ask_and_read(server: ServingProcess, origin: str) -> None:
    asked = preflight(server, origin)
    assert asked.status_code == 200, "and needs no key for it"
    assert asked.headers["access-control-allow-origin"] == origin
    assert "POST" in asked.headers["access-control-allow-methods"]
    response = ask(server, origin=origin)
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, origin)
    assert ask(server, origin=origin, authorization="").status_code == 401


def test_streams_may_be_read_as_well(server: ServingProcess) -> None:
    body = {"prompt": "x", "max_tokens": 2, "stream": True}
    response = server.http.post("/v1/completions", json=body, headers={"origin": "http://localhost:1"})
    assert response.headers["access-control-allow-origin"] == "http://localhost:1"
    assert response.text.endswith("data: [DONE]\n\n")


def test_what_was_allowed(opened: ServingProcess) -> None:
    assert ask(opened, host="my.name:8000").status_code == 200
    response = ask(opened, origin="https://app.example")
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "https://app.example")
    assert preflight(opened, "https://app.example").status_code == 200
    assert ask(opened, origin="https://other.example").status_code == 403


def test_a_server_for_the_network_does_not_know_its_names(artifact: Path) -> None:
    with ServingProcess(artifact, host="0.0.0.0") as server:
        response = ask(server.ready(), host="name.example", origin="https://name.example")
        assert response.status_code == 200
        assert "access-control-allow-origin" not in response.headers


def test_everybody(artifact: Path) -> None:
    with ServingProcess(artifact, allow_origin=["*"]) as server:
        response = ask(server.ready(), origin="https://any.example")
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "*")


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)]
)
def test_who_is_heard_on_this_machine_only(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected

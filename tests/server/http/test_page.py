"""How the page at / is served; test_page_in_a_browser.py uses it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_stand_in import write_artifact
from checkout import ROOT
from serving_process import ServingProcess

PAGE = (ROOT / "server" / "http" / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("page") / "artifact")


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[ServingProcess]:
    with ServingProcess(artifact, api_key="key") as server:
        yield server.ready()


def test_whoever_has_no_key_yet_gets_the_page(server: ServingProcess) -> None:
    response = server.http.get("/", headers={"authorization": ""})
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert response.text == PAGE
    assert server.http.get("/v1/models", headers={"authorization": ""}).status_code == 401


def test_headers(server: ServingProcess) -> None:
    headers = server.http.get("/").headers
    policy = dict(directive.split(" ", 1) for directive in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert re.fullmatch(r"'sha256-\S+'", policy["script-src"])
    assert re.fullmatch(r"'sha256-\S+'", policy["style-src"])
    assert "unsafe" not in headers["content-security-policy"]
    assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")


def test_a_browser_that_has_it_is_sent_nothing(server: ServingProcess) -> None:
    first = server.http.get("/")
    assert first.headers["cache-control"] == "no-cache"
    again = server.http.get("/", headers={"if-none-match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    assert server.http.get("/", headers={"if-none-match": '"other"'}).status_code == 200


def test_no_page(artifact: Path) -> None:
    with ServingProcess(artifact, no_page=True) as server:
        response = server.ready().http.get("/")
        assert response.status_code == 404
        assert "--no-page" in response.json()["error"]["message"]
        assert server.http.get("/v1/models").status_code == 200


def test_the_page_is_one_file_without_addresses() -> None:
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", PAGE)) - {"http://www.w3.org"}  # the namespace of SVG
    assert addresses == set()
    assert re.findall(r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval)\b", PAGE) == []

"""What a checkpoint recommends holds where a request does not say, unless the server is told otherwise."""

from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import MODEL, edit_manifest, write_artifact
from serving_process import ServingProcess

from engine.artifacts import SamplingDefaults, load_manifest
from engine.server.dialects.params import GenerationParams

TEXT = "a b c d e f g"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its worker says the prompt back at temperature 0, and else what the seed says."""
    directory = write_artifact(tmp_path_factory.mktemp("recommended") / "artifact")
    edit_manifest(directory, lambda content: content.update(sampling={"temperature": 0.0, "top_k": 20, "max_new_tokens": 3}))
    return directory


def completed(server: ServingProcess, **fields: Any) -> str:
    body = {"model": MODEL, "prompt": TEXT, "max_tokens": 7, "seed": 1, **fields}
    text: str = server.http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    return text


def test_it_holds_where_a_request_does_not_say(artifact: Path) -> None:
    with ServingProcess(artifact) as server:
        server.ready()
        (model,) = server.http.get("/v1/models").json()["data"]
        assert model["default_sampling_params"] == {
            "temperature": 0.0, "top_p": 1.0, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.0, "max_tokens": 3,
        }  # fmt: skip
        assert completed(server) == completed(server, temperature=0) == TEXT
        assert completed(server, temperature=1) != TEXT
        messages = [{"role": "user", "content": TEXT}]
        answer = server.http.post("/v1/chat/completions", json={"messages": messages}).json()
        assert answer["usage"]["completion_tokens"] == 3
        answer = server.http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 5}).json()
        assert answer["usage"]["completion_tokens"] == 5


def test_it_can_be_left_out(artifact: Path) -> None:
    with ServingProcess(artifact, generation_config="none") as server:
        server.ready()
        (model,) = server.http.get("/v1/models").json()["data"]
        assert model["default_sampling_params"] == {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        assert completed(server) != TEXT


def test_an_artifact_that_says_nothing_is_as_before(tmp_path: Path) -> None:
    directory = write_artifact(tmp_path / "artifact")
    edit_manifest(directory, lambda content: content.pop("sampling"))
    assert load_manifest(directory).sampling == SamplingDefaults()


def test_what_a_request_says_comes_first() -> None:
    params = GenerationParams(top_p=0.5, top_k=0).or_else(SamplingDefaults(temperature=0.6, top_p=0.9, top_k=20, max_new_tokens=9))
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.6, 0.5, 0, None)

"""The same conversation by the clients that people use: a stream, a tool and its result, structured text.

Each is a program in `tests/support/conversations/`, run as its users would run it. The worker is a scripted one: what an
answer says is given by the conversation, and what is tried is that client and server understand each other.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import CONVERSING_TEMPLATE, MODEL, write_artifact
from checkout import ROOT
from client_environments import KEPT, node_with, python_with
from patience import PATIENCE
from serving_process import ServingProcess

from engine.artifacts import AnswerForms

CONVERSATIONS = ROOT / "tests" / "support" / "conversations"
SAY = "The quick brown fox, and 東京."
PLACE = {"city": "Łódź"}
STREAM = {"streamed": SAY}
TOOL = {"called": ["weather", PLACE], "after": "The tool says sun."}
STRUCTURED = {"structured": PLACE}
WHOLE = STREAM | TOOL | STRUCTURED
BY_TOOL = {"by_tool": PLACE}
CLIENTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "langchain_openai_client": (("langchain-openai==1.7.4",), WHOLE | BY_TOOL),
    "pydantic_ai_client": (("pydantic-ai-slim[openai]==2.68.0",), WHOLE | BY_TOOL),
    "instructor_client": (("instructor==1.17.0",), STRUCTURED | BY_TOOL | {"partial": PLACE}),
    "openai_agents_client": (("openai-agents==0.24.0",), WHOLE | {"responses": WHOLE}),
    "litellm_client": (("litellm==1.110.2",), WHOLE),
    "llm_client": (("llm==0.36",), WHOLE),
}
"""What to install, and what the conversation comes to."""
AI_SDK = ("ai@6.0.326", "@ai-sdk/openai@3.0.141", "@ai-sdk/openai-compatible@2.0.92", "zod@4.6.7")
needs_node = pytest.mark.skipif(shutil.which("npm") is None, reason="no npm here")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    artifact = write_artifact(
        tmp_path_factory.mktemp("server") / "artifact", template=CONVERSING_TEMPLATE, forms=AnswerForms(tools="hermes"), max_context=4096
    )
    with ServingProcess(artifact, "--blocks", "1024") as server:
        yield server.ready()


def converse(server: ServingProcess, *program: str | Path) -> Any:
    done = subprocess.run(
        [*program, server.url, MODEL, SAY, json.dumps(PLACE)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_openai_python(server: ServingProcess) -> None:
    assert converse(server, sys.executable, "-P", CONVERSATIONS / "openai_python.py") == WHOLE | {"responses": TOOL | STRUCTURED}


def test_anthropic(server: ServingProcess) -> None:
    assert converse(server, sys.executable, "-P", CONVERSATIONS / "anthropic_python.py") == WHOLE


@needs_node
def test_openai_node(server: ServingProcess, tmp_path: Path) -> None:
    folder = node_with(tmp_path / "openai", "openai@6.49.0")
    assert in_node(server, folder, "openai_node.mjs") == WHOLE | {"responses": TOOL | STRUCTURED}


@pytest.mark.exhaustive
@needs_node
def test_ai_sdk(server: ServingProcess) -> None:
    folder = node_with(KEPT / "ai-sdk", *AI_SDK)
    assert in_node(server, folder, "ai_sdk.mjs") == WHOLE | {"responses": WHOLE}


@pytest.mark.exhaustive
@pytest.mark.parametrize("client", CLIENTS)
def test_python_client(server: ServingProcess, client: str) -> None:
    requirements, expected = CLIENTS[client]
    assert converse(server, python_with(client, *requirements), "-P", CONVERSATIONS / f"{client}.py") == expected


def in_node(server: ServingProcess, folder: Path, program: str) -> Any:
    """Runs a copy of `program` in `folder`, since node looks for packages from where a program lies."""
    return converse(server, "node", shutil.copy(CONVERSATIONS / program, folder))

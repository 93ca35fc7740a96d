"""Engine itself, at its default settings."""

import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from .session import Server
from .subject import Place, Subject

NAME = "Engine"


def install(place: Place) -> Mapping[str, str]:
    return {"engine": version("engine-llm"), "torch": version("torch")}


def subjects(place: Place) -> list[Subject]:
    program = Path(sys.executable).with_name("engine")
    command = [str(program), "serve", "--artifacts", str(place.artifacts), "--port", "{port}", "--threads", str(place.threads)]
    server = Server(command=(*command, "--served-model-name", "model"))
    weights = place.gguf.stem.rpartition(".")[2]
    return [Subject(peer=NAME, weights=weights, four_bits="4" in weights, same_file=True, setting="defaults", open=lambda _: server)]

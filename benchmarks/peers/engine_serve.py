"""Engine itself, at its default settings."""

import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from engine.artifacts import load_manifest

from .session import Server
from .subject import Place, Subject

NAME = "Engine"


def install(place: Place) -> Mapping[str, str]:
    return {"engine": version("engine-llm"), "torch": version("torch")}


def subjects(place: Place) -> list[Subject]:
    program = Path(sys.executable).with_name("engine")
    command = [str(program), "serve", "--artifacts", str(place.artifacts), "--port", "{port}", "--threads", str(place.threads)]
    server = Server(command=(*command, "--served-model-name", "model"))
    model = load_manifest(place.artifacts).model
    is_same = model.quantize == "none" and not set(model.source_format.split("+")) <= {"f32", "f16", "bf16"}
    weights = place.gguf.stem.rpartition(".")[2] if is_same else model.quantize if model.quantize != "none" else "as published"
    return [Subject(peer=NAME, weights=weights, four_bits="4" in weights, same_file=is_same, setting="defaults", open=lambda _: server)]

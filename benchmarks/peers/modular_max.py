"""Modular's MAX server."""

from collections.abc import Mapping
from functools import partial

from .checkpoint import make_checkpoint
from .environment import Environment
from .session import Room, Server
from .subject import Place, Subject

NAME = "Modular MAX"


def _environment(place: Place) -> Environment:
    return Environment(place.work / "modular", ("modular",))


def install(place: Place) -> Mapping[str, str]:
    environment = _environment(place)
    environment.install()
    make_checkpoint(place)
    return environment.versions(["modular"])


def subjects(place: Place) -> list[Subject]:
    return [Subject(peer=NAME, weights="float32", open=partial(_server, place))]


def _server(place: Place, room: Room) -> Server:
    command = [_environment(place).command("max"), "serve", "--model-path", place.checkpoint, "--devices", "cpu", "--quantization-encoding"]
    command += ["float32", "--max-length", "2048", "--max-batch-size", room.sequences, "--port", "{port}"]
    variables = {"MODULAR_HOME": place.work / "modular-home", "MODULAR_TELEMETRY_ENABLED": "0", "MAX_SERVE_DISABLE_TELEMETRY": "1"}
    return Server(
        command=tuple(map(str, command)),
        model=str(place.checkpoint),
        variables={name: str(value) for name, value in variables.items()},
    )

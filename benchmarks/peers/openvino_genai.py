"""OpenVINO GenAI: a library without a server of its own, driven by a runner in its environment."""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from .checkpoint import TORCH, make_checkpoint, runner
from .environment import Environment, run
from .session import Library, Room
from .subject import Place, Subject

NAME = "OpenVINO GenAI"
_PACKAGES = ("openvino-genai", "openvino-tokenizers", "optimum-intel", "nncf")
_WEIGHTS: dict[str, tuple[str, ...]] = {
    "int4": ("--weight-format", "int4", "--group-size", "64", "--ratio", "1.0"),
    "int8": ("--weight-format", "int8"),
    "fp16": ("--weight-format", "fp16"),
}


def _environment(place: Place) -> Environment:
    return Environment(place.work / "openvino", (TORCH, *_PACKAGES), without=("torchvision",))


def install(place: Place) -> Mapping[str, str]:
    environment = _environment(place)
    environment.install()
    make_checkpoint(place)
    for weights in _WEIGHTS:
        _export(place, environment, weights)
    return environment.versions(_PACKAGES)


def subjects(place: Place) -> list[Subject]:
    return [
        Subject(
            peer=NAME,
            weights=weights,
            four_bits=weights == "int4",
            setting="continuous batching",
            open=partial(_library, place, weights),
        )
        for weights in _WEIGHTS
    ]


def _library(place: Place, weights: str, room: Room) -> Library:
    arguments = (_model(place, weights), place.threads, room.sequences, room.tokens)
    command, variables = runner(_environment(place), "openvino_runner", *arguments)
    return Library(command=command, variables=variables)


def _model(place: Place, weights: str) -> Path:
    return place.work / "openvino-models" / weights


def _export(place: Place, environment: Environment, weights: str) -> None:
    final = _model(place, weights)
    if final.is_dir():
        return
    unfinished = final.with_suffix(".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    task = ["--model", str(place.checkpoint), "--task", "text-generation-with-past"]
    program = str(environment.command("optimum-cli"))
    run([program, "export", "openvino", *task, *_WEIGHTS[weights], str(unfinished)], variables={"HF_HUB_OFFLINE": "1"})
    unfinished.rename(final)

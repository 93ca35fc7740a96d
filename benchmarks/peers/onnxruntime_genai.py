"""ONNX Runtime GenAI: a library without a server of its own, driven by a runner in its environment."""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from .checkpoint import TORCH, make_checkpoint, runner
from .environment import Environment, run
from .session import Library, Room
from .subject import Place, Subject

NAME = "ONNX Runtime GenAI"
_PACKAGES = ("onnxruntime-genai", "onnxruntime", "onnx", "onnx-ir")
_MODELS = {"alone": ("prune_lm_head=true",), "batch": ()}
"""Options of the two graphs: computing only the last logits is faster, but wrong for padded batches."""


def _environment(place: Place) -> Environment:
    return Environment(place.work / "onnxruntime", (TORCH, *_PACKAGES, "transformers", "accelerate"))


def install(place: Place) -> Mapping[str, str]:
    environment = _environment(place)
    environment.install()
    make_checkpoint(place)
    for name in _MODELS:
        _build(place, environment, name)
    return environment.versions(_PACKAGES)


def subjects(place: Place) -> list[Subject]:
    return [Subject(peer=NAME, weights="int4", four_bits=True, setting="static batches", open=partial(_library, place))]


def _library(place: Place, room: Room) -> Library:
    model = _model(place, "alone" if room.sequences == 1 else "batch")
    command, variables = runner(_environment(place), "onnxruntime_runner", model, place.threads)
    return Library(command=command, variables=variables)


def _model(place: Place, name: str) -> Path:
    return place.work / "onnxruntime-models" / f"int4-{name}"


def _build(place: Place, environment: Environment, name: str) -> None:
    final = _model(place, name)
    if final.is_dir():
        return
    unfinished = final.with_suffix(".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    builder = [str(environment.python), "-m", "onnxruntime_genai.models.builder", "-i", str(place.checkpoint), "-o", str(unfinished)]
    builder += ["-p", "int4", "-e", "cpu", "-c", str(final.parent / "cache")]
    run([*builder, "--extra_options", "shared_embeddings=true", "hf_token=false", *_MODELS[name]], variables={"HF_HUB_OFFLINE": "1"})
    unfinished.rename(final)

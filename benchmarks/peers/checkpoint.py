"""The model for peers that read no GGUF: the same file's weights, dequantized by transformers."""

import shutil
from pathlib import Path

from .environment import Environment, run
from .subject import Place

_PACKAGE = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"


def runner(environment: Environment, name: str, *arguments: object) -> tuple[tuple[str, ...], dict[str, str]]:
    """Command and variables that run a module of `runners` inside an environment."""
    command = (str(environment.python), "-m", f"{_PACKAGE.name}.runners.{name}", *map(str, arguments))
    return command, {"PYTHONPATH": str(_PACKAGE.parent)}


def transformers_environment(place: Place) -> Environment:
    """transformers with its server: a peer, and what makes the checkpoint of the others."""
    return Environment(place.work / "transformers", (TORCH, "transformers[serving]", "accelerate", "gguf"))


def make_checkpoint(place: Place) -> None:
    """Write `place.checkpoint`, unless it is there. Raises PeerError."""
    if place.checkpoint.is_dir():
        return
    environment = transformers_environment(place)
    environment.install()
    partial = place.checkpoint.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    command, variables = runner(environment, "export_checkpoint", place.gguf, partial)
    run(command, variables={**variables, "HF_HUB_OFFLINE": "1"})
    partial.rename(place.checkpoint)

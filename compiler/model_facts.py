"""What a model must have in common with another one for the same code and recipes to serve both: names and short texts.

The configuration decides the graph, the shapes and the constants; how the checkpoint stores its
parameters decides the recipes. What layers have in common is said once.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from itertools import groupby

from ..artifacts import Manifest
from ..errors import Misfit
from ..models.checkpoint import Checkpoint
from ..models.config import ModelConfig

_IN_A_LAYER = re.compile(r"^layers\.\d+\.")


def model_facts(checkpoint: Checkpoint) -> dict[str, str]:
    """Every field of the configuration, and the format in which each parameter is stored."""
    return _config_facts(checkpoint.config) | _stored_facts(checkpoint)


def misfits(manifest: Manifest, checkpoint: Checkpoint) -> list[Misfit]:
    """Why the code of an artifact cannot take the weights of a checkpoint (empty: it can)."""
    made_for, found = manifest.model_config, model_facts(checkpoint)
    names = dict.fromkeys([*found, *made_for])
    rows = {name: (made_for.get(name, "none"), found.get(name, "none")) for name in names}
    return [Misfit(field=name, artifact=ours, machine=theirs) for name, (ours, theirs) in rows.items() if ours != theirs]


def _config_facts(config: ModelConfig) -> dict[str, str]:
    facts = {field.name: str(getattr(config, field.name)) for field in dataclasses.fields(config) if field.name not in ("rope", "layers")}
    for field in dataclasses.fields(config.rope):
        value = getattr(config.rope, field.name)
        facts[f"rope.{field.name}"] = _short(value) if isinstance(value, tuple) else str(value)
    facts["layers"] = _runs(" ".join(f"{name}={value}" for name, value in dataclasses.asdict(layer).items()) for layer in config.layers)
    return facts


def _stored_facts(checkpoint: Checkpoint) -> dict[str, str]:
    formats: dict[str, list[str]] = {}
    for name, parameter in checkpoint.parameters.items():
        formats.setdefault(_IN_A_LAYER.sub("layers.*.", name), []).append(parameter.format)
    return {f"stored.{name}": _runs(found) for name, found in formats.items()}


def _short(numbers: tuple[float, ...]) -> str:
    if not numbers:
        return "none"
    return f"{len(numbers)} numbers, sha256 {hashlib.sha256(repr(numbers).encode()).hexdigest()[:16]}"


def _runs(texts: Iterable[str]) -> str:
    """`a a a b` -> `3 x a, 1 x b`."""
    return ", ".join(f"{len(list(run))} x {text}" for text, run in groupby(texts))

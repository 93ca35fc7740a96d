"""What a model must have in common with another one for the same code and recipes to serve both.

The configuration decides the graph, the shapes and the constants; how the checkpoint stores its
parameters decides the recipes. Both are ingredients of the program's key, which every manifest records.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..artifacts import Manifest
from ..artifacts.store.ingredients import differences, identities
from ..artifacts.store.keys import compact, flatten
from ..errors import Misfit
from ..models.checkpoint import Checkpoint
from ..models.spec import ModelSpec

_NONE = "none"


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Fields of the same names as those of a program's recipe (step_program.py)."""

    spec: ModelSpec
    stored: Mapping[str, str]


def model_facts(checkpoint: Checkpoint) -> dict[str, str]:
    """Every field of the configuration, and the format in which each parameter is stored, as a manifest would record them."""
    stored = {name: parameter.format for name, parameter in checkpoint.parameters.items()}
    return compact(flatten(ModelFacts(spec=checkpoint.spec, stored=stored)))


def made_for(manifest: Manifest) -> dict[str, str]:
    """The same of the model that an artifact's code was made for; empty where the manifest does not say."""
    programs = [found for found in identities(manifest.ingredients) if found.kind == "program"]
    return {name: value for program in programs for name, value in program.ingredients.items() if _is_fact(name)}


def misfits(manifest: Manifest, checkpoint: Checkpoint) -> list[Misfit]:
    """Why the code of an artifact cannot take the weights of a checkpoint (empty: it can)."""
    return [
        Misfit(field=found.ingredient, artifact=found.first or _NONE, machine=found.second or _NONE)
        for found in differences(made_for(manifest), model_facts(checkpoint))
    ]


def _is_fact(name: str) -> bool:
    return name.partition(".")[0] in ("spec", "stored")

"""A model without the layers that are like their neighbours: traced in a fraction of the time, into the same segments."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from ..models.parts.attention import AttentionSpec
from ..models.spec import LayerSpec
from .step_program import Wanted
from .weights_plan import PackedWeight

_LAYER = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class FewerLayers:
    """wanted: the smaller model's. stands_for: by its layers, how many of the whole model each of them stands for."""

    wanted: Wanted
    stands_for: tuple[int, ...]

    @classmethod
    def none_left_out(cls, wanted: Wanted) -> "FewerLayers":
        """The model as it is."""
        return cls(wanted=wanted, stands_for=(1,) * len(wanted.spec.layers))

    def times(self, weight: PackedWeight) -> int:
        """How many tensors of the whole model one of the smaller stands for."""
        found = _LAYER.match(weight.sources[0] if weight.sources else weight.name)
        return self.stands_for[int(found[1])] if found else 1


def fewer_layers(wanted: Wanted) -> FewerLayers:
    """Of every run of equal layers (equal in configuration and in the formats of all parameters) the first and the last are kept.

    So is every layer whose keys and values another one reads. A segment reaches at most from one layer into the next, so every pair
    of neighbours that the whole model has is in it. Nothing is left out where inputs of all layers are made at once, in one segment.
    """
    if wanted.spec.layer_inputs is not None:
        return FewerLayers.none_left_out(wanted)
    runs = [list(run) for _, run in groupby(range(len(wanted.spec.layers)), key=lambda index: _kind(wanted, index))]
    kept = [index for run in runs for index in ((run[0], run[-1]) if len(run) > 1 else run)]
    stands_for = [count for run in runs for count in ((len(run) - 1, 1) if len(run) > 1 else (1,))]
    smaller = replace(
        wanted,
        spec=replace(wanted.spec, layers=tuple(_renumbered(wanted.spec.layers[index], kept) for index in kept)),
        formats=_of_layers(wanted.formats, kept),
        stored=_of_layers(wanted.stored, kept),
    )
    return FewerLayers(wanted=smaller, stands_for=tuple(stands_for))


def _renumbered(layer: LayerSpec, kept: list[int]) -> LayerSpec:
    mixer = layer.mixer
    if not isinstance(mixer, AttentionSpec) or mixer.source is None:
        return layer
    return replace(layer, mixer=replace(mixer, source=kept.index(mixer.source)))


def _kind(wanted: Wanted, index: int) -> object:
    """What equal layers have in common; a layer that others read is equal to none."""
    is_read = any(layer.mixer.source == index for layer in wanted.spec.layers)
    prefix = f"layers.{index}."
    parameters = [
        {n.removeprefix(prefix): f for n, f in names.items() if n.startswith(prefix)} for names in (wanted.formats, wanted.stored)
    ]
    return wanted.spec.layers[index], parameters, index if is_read else None


def _of_layers(names: Mapping[str, str], kept: list[int]) -> dict[str, str]:
    """The entries of layers that are kept, under their new numbers, and those of no layer."""
    number = {index: position for position, index in enumerate(kept)}
    found = {}
    for name, format in names.items():
        if (layer := _LAYER.match(name)) is None:
            found[name] = format
        elif (index := int(layer[1])) in number:
            found[f"layers.{number[index]}.{name[layer.end() :]}"] = format
    return found

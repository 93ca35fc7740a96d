"""In which format an artifact holds each parameter."""

from engine.artifacts import Manifest
from engine.compiler.weights_plan import formats_of_sources


def held_formats(manifest: Manifest) -> dict[str, str]:
    """By parameter; of a weight with bands, that of its own."""
    found: dict[str, str] = {}
    for weight in manifest.weights.values():
        found |= dict(zip(weight.sources, formats_of_sources(weight.format, len(weight.sources)), strict=True))
    return found

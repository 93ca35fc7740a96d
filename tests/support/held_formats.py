"""In which format an artifact holds each parameter."""

from engine.artifacts import Manifest
from engine.kernels.linear.bands import is_mixed, read_bands


def held_formats(manifest: Manifest) -> dict[str, str]:
    """By parameter; of a weight with bands, that of its own."""
    found: dict[str, str] = {}
    for weight in manifest.weights.values():
        formats = [band.format for band in read_bands(weight.format)] if is_mixed(weight.format) else [weight.format] * len(weight.sources)
        found |= dict(zip(weight.sources, formats, strict=True))
    return found

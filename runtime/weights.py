"""Opens the artifact's weights: memory-mapped, shared by every process that maps the same file."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..artifacts import Manifest
from ..errors import ArtifactError


def open_weights(directory: Path, manifest: Manifest) -> dict[str, torch.Tensor]:
    """Every packed tensor by weight name. Nothing is read until it is used.

    Raises ArtifactError for a file that is not what the manifest says.
    """
    weights: dict[str, torch.Tensor] = {}
    for name in sorted({info.file for info in manifest.weights.values()}):
        try:
            with safe_open(directory / name, framework="pt") as file:
                for weight, info in manifest.weights.items():
                    if info.file == name:
                        weights[weight] = _checked(file.get_tensor(weight), weight, info.dtype, info.shape)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{directory / name} cannot be opened: {error}", hint="copy or build the artifact again") from error
    return weights


def _checked(tensor: torch.Tensor, name: str, dtype: str, shape: list[int]) -> torch.Tensor:
    if str(tensor.dtype) != f"torch.{dtype}" or list(tensor.shape) != shape:
        raise ArtifactError(f"weight {name} is {tensor.dtype} {list(tensor.shape)}, the manifest says {dtype} {shape}")
    return tensor

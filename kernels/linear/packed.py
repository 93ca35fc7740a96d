"""Shapes of packed weights and the kernel that reads them, from the storage format's name alone."""

import torch

from ..ops import QUANTIZED_FORMATS
from .blocks import FORMATS, GROUP
from .formats import PANEL

DENSE_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def kernel_of(format: str) -> str:
    """The kernel that reads a storage format: "dense" for f32, f16 and bf16, its own for every other."""
    return format if format in QUANTIZED_FORMATS else "dense"


def packed_shape(format: str, out_features: int, in_features: int) -> tuple[int, int, int]:
    """Shape of a packed weight [out_features, in_features]."""
    panels = -(-out_features // PANEL)
    if format not in QUANTIZED_FORMATS:
        return panels, in_features, PANEL
    return panels, -(-in_features // GROUP), PANEL * FORMATS[format].block_bytes


def packed_dtype(format: str) -> torch.dtype:
    """Dtype of a packed weight."""
    return DENSE_DTYPES.get(format, torch.uint8)

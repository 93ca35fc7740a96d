"""Shapes of packed weights and the kernel that reads them, from the storage format's name and the target's layout."""

from collections.abc import Mapping, Sequence
from math import lcm, prod
from typing import Literal

import torch

from ..formats import QUANTIZED_FORMATS, QUANTIZERS
from ..nvidia import packed_rows
from .bands import is_mixed, read_bands
from .blocks import FORMATS, GROUP
from .formats import PANEL

DENSE_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
Layout = Literal["panels", "rows"]
"""How weights lie: in panels of 16 rows for CPUs (formats.py), row by row for NVIDIA (nvidia/packed_rows.py)."""
_ANY_BLOCKS = lcm(*(spec.block for spec in FORMATS.values()))
"""Whole blocks of every format."""
ORDER = "order"
"""Of the columns of a matrix in act-order, whose groups are not consecutive columns: int32 [K], sorted by group."""


def kernel_of(format: str, layout: Layout = "panels") -> str:
    """The kernel that reads a storage format: "dense" for f32 and f16, in rows also for bf16; "mixed" for bands; for others their own.

    Those of rows have "rows_" before their names. FP8 formats whose rows lie alike have one.
    """
    if layout == "rows":
        return "rows_dense" if format in DENSE_DTYPES else f"rows_{packed_rows.fp8_layout(format)}"
    return "dense" if format in ("f32", "f16") else "mixed" if is_mixed(format) else format


def quantizer_of(format: str, layout: Layout = "panels") -> str | None:
    """The operator that quantizes or rounds the activations of a linear in that format; None if its kernel takes them as they are."""
    return QUANTIZERS.get(format if layout == "panels" else f"rows_{format}")


def order_name(weight: str) -> str:
    """What the order of a matrix's columns is called."""
    return weight.removesuffix("weight") + ORDER


def order_of(weight: str, formats: Mapping[str, str]) -> str | None:
    """The order in which the linear of a weight reads its activations; None if that is theirs.

    formats: of all, by name. An order has the format `order:NAME`: it is that of the sibling NAME, maybe itself.
    """
    format = formats.get(order_name(weight))
    parent = weight.removesuffix(".weight").rpartition(".")[0]
    return None if format is None else ".".join((*([parent] if parent else []), format.removeprefix(f"{ORDER}:"), ORDER))


def packed_shape(format: str, out_features: int, in_features: int, layout: Layout = "panels") -> tuple[int, ...]:
    """Shape of a packed weight [out_features, in_features]. Bands, which have their own numbers of outputs, are bytes."""
    if layout == "rows":
        return packed_rows.packed_shape(format, out_features, in_features)
    if is_mixed(format):
        return (sum(prod(packed_shape(band.format, band.out_features, in_features)) for band in read_bands(format)),)
    panels = -(-out_features // PANEL)
    if format == "bf16":
        return panels, -(-in_features // 2), PANEL, 2
    if format not in QUANTIZED_FORMATS:
        return panels, in_features, PANEL
    spec = FORMATS[format]
    blocks = -(-in_features // spec.block)
    if spec.of_rows:
        return panels, 1, PANEL * (spec.head_bytes + blocks * spec.group_bytes)
    return panels, blocks, PANEL * spec.packed_bytes


def in_features_of_panels(format: str, shape: Sequence[int]) -> int:
    """K of a weight packed in panels, filled up as it is packed."""
    if is_mixed(format):
        without, more = (packed_shape(format, 0, in_features)[0] for in_features in (0, _ANY_BLOCKS))
        return (shape[0] - without) * _ANY_BLOCKS // (more - without)
    if format not in FORMATS:
        return shape[1] * (shape[3] if format == "bf16" else 1)
    spec = FORMATS[format]
    if spec.of_rows:
        return (shape[2] // PANEL - spec.head_bytes) // spec.group_bytes * GROUP
    return shape[1] * spec.block


def packed_dtype(format: str) -> torch.dtype:
    """Dtype of a packed weight."""
    return DENSE_DTYPES.get(format, torch.uint8)

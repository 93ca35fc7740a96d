"""Which kernels read which weight formats. Names alone: of operators, as `linear_KERNEL`, and of the storage formats that they unpack."""

from .linear.blocks import FORMATS
from .nvidia.packed_rows import FP8_FORMATS as FP8_FORMATS
from .nvidia.packed_rows import FP8_LAYOUTS
from .nvidia.packed_rows import ROW_FORMATS as ROW_FORMATS

QUANTIZED_FORMATS = tuple(FORMATS)
FLOAT_KERNELS = ("dense", "bf16")
"""Those of CPU targets whose weights are numbers."""
PANEL_KERNELS = (*FLOAT_KERNELS, *QUANTIZED_FORMATS)
"""Linears and embeddings of CPU targets: weights in panels, float32 results (see linear/formats.py)."""
ROW_KERNELS = tuple(f"rows_{kernel}" for kernel in ("dense", *ROW_FORMATS))
"""Those of NVIDIA targets: weights row by row, bfloat16 activations and results (see nvidia/formats.py)."""
FP8_KERNELS = tuple(f"rows_{layout}" for layout in FP8_LAYOUTS)
"""Linears of NVIDIA targets that multiply FP8 activations with FP8 weights (see nvidia/fp8.py)."""
LINEAR_KERNELS = (*PANEL_KERNELS, "mixed", *ROW_KERNELS, *FP8_KERNELS)
"""mixed: of a CPU target, whose weights have bands of several quantized formats (see linear/bands.py)."""
PANEL_QUANTIZERS = {"bf16": "round_bf16"} | {
    name: "quantize_rows" if spec.row_activations else "quantize" for name, spec in FORMATS.items()
}
"""For each format of CPU targets whose linears take activations that are not float32, the operator that makes those."""
QUANTIZERS = PANEL_QUANTIZERS | {f"rows_{format}": f"quantize_{format}" for format in FP8_FORMATS}
"""Likewise for all targets: formats of row kernels have rows_ before their names."""
GROUP = 32
"""Consecutive elements that share a scale, in quantized weights and activations."""
ACTIVATION_BYTES = 48
"""Bytes of one group of quantized activations (see linear/activations.py)."""
ROW_ALIGNMENT = 64
"""Activations with one scale per row: quants are filled up to a multiple of this, and as many bytes with the scale follow."""


def row_activation_bytes(in_features: int) -> int:
    """Bytes of a row of activations with one scale per row (see linear/activations.py)."""
    return -(-in_features // ROW_ALIGNMENT) * ROW_ALIGNMENT + ROW_ALIGNMENT

"""Which emitter an operator has: how it becomes kernel launches on NVIDIA GPUs."""

from ..linear.blocks import FORMATS
from .attention import ATTENTION
from .embedding import embedding_dense, embedding_quantized
from .launch import Emit
from .linear import linear_dense
from .linear_fp8 import linear_fp8
from .linear_quantized import linear_quantized
from .packed_rows import FP8_FORMATS, FP8_LAYOUTS
from .quantize_fp8 import quantize, rms_norm_quantize, silu_mul_quantize
from .rows import rms_norm, silu_mul
from .sample import sample

_LINEARS: dict[str, Emit] = {
    "dense": linear_dense,
    **{format: linear_quantized(format) for format in FORMATS},
    **{layout: linear_fp8(layout) for layout in FP8_LAYOUTS},
}

EMITTERS: dict[str, Emit] = {
    **{f"linear_rows_{kernel}": emit for kernel, emit in _LINEARS.items()},
    **{f"logits_rows_{kernel}": emit for kernel, emit in _LINEARS.items()},
    "embedding_rows_dense": embedding_dense,
    **{f"embedding_rows_{format}": embedding_quantized(format) for format in FORMATS},
    **{f"quantize_{format}": quantize(format) for format in FP8_FORMATS},
    **{f"rms_norm_quantize_{format}": rms_norm_quantize(format) for format in FP8_FORMATS},
    **{f"silu_mul_quantize_{format}": silu_mul_quantize(format) for format in FP8_FORMATS},
    "rms_norm": rms_norm,
    "silu_mul": silu_mul,
    **ATTENTION,
    "sample": sample,
}
"""By operator, without the namespace."""

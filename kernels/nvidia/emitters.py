"""Which emitter an operator has: how it becomes kernel launches on NVIDIA GPUs."""

from ..linear.blocks import FORMATS
from .activations import ACTIVATIONS
from .attention import attention
from .embedding import embedding_dense, embedding_quantized
from .launch import Emit
from .linear import linear_dense
from .linear_fp8 import linear_fp8
from .linear_quantized import linear_quantized
from .norms import norm
from .packed_rows import FP8_FORMATS, FP8_LAYOUTS
from .quantize_fp8 import quantize, twins
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
    **{name: emit for format in FP8_FORMATS for name, emit in twins(format).items()},
    "rms_norm": norm("rms_norm"),
    "layer_norm": norm("layer_norm"),
    **ACTIVATIONS,
    "attention": attention,
    "sample": sample,
}
"""By operator, without the namespace."""

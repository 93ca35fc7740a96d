"""Which emitter an operator has: how it becomes kernel launches on NVIDIA GPUs.

The table names modules of this folder and imports none of them. So the key of a launch plan can cover
those that made it and no others, and is known without importing Triton.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from ..row_operators import ROW_OPERATORS, TWINS, twin
from .packed_rows import FP8_FORMATS, FP8_LAYOUTS, ROW_FORMATS

if TYPE_CHECKING:
    from .context import Emit

_NORMS = ("rms_norm", "layer_norm")
_LINEARS = {
    "dense": "linear",
    **dict.fromkeys(ROW_FORMATS, "linear_quantized"),
    **dict.fromkeys(FP8_LAYOUTS, "linear_fp8"),
}

MODULES: dict[str, str] = {
    **{f"{result}_rows_{kernel}": module for result in ("linear", "logits") for kernel, module in _LINEARS.items()},
    **{f"experts_rows_{kernel}": "experts" for kernel in _LINEARS},
    **dict.fromkeys(("route", "sort_routes", "equal_order", "weigh_rows", "combine_experts"), "routing"),
    **{f"embedding_rows_{kernel}": "embedding" for kernel in ("dense", *ROW_FORMATS)},
    **{f"quantize_{format}": "quantize_fp8" for format in FP8_FORMATS},
    **{twin(row.name, f"quantize_{format}"): "quantize_fp8" for row in TWINS for format in FP8_FORMATS},
    **{name: "norms" if name in _NORMS else "activations" for name, row in ROW_OPERATORS.items() if not row.cpu_only},
    "attention": "attention",
    "latent_attention": "latent_attention",
    "sample": "sample",
}
"""By operator, without the namespace. A module's own EMITTERS has the function."""


def operator_name(target: str) -> str:
    """`engine.rms_norm.default`, as graphs have it, to `rms_norm`."""
    return target.removeprefix("engine.").removesuffix(".default")


def emitter_of(operator: str) -> "Emit":
    """The emitter of one of MODULES; imports its module."""
    emitters: Mapping[str, Emit] = import_module(f".{MODULES[operator]}", __package__).EMITTERS
    return emitters[operator]

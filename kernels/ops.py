"""Schemas of our operators, and how they come into torch's dispatcher.

Nothing happens at import. `define()` makes the schemas known and `register_fakes()` adds shape
functions for tracing (build), `load(path)` adds the native CPU implementations from a kernel
library (tests, benchmarks). Serving knows no schemas: it loads the library's code (native.py), and
segments call it by symbol.

Legend: T tokens of a step, S sequences of a step, B blocks per sequence, N out features,
K in features, QH / KH query and key-value heads, D head size, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from .cut_operators import CUT_OPERATORS
from .native import load_code
from .nvidia.packed_rows import FP8_FORMATS as FP8_FORMATS
from .nvidia.packed_rows import FP8_LAYOUTS, FP8_STATIC, fp8_row_bytes
from .row_operators import ROW_OPERATORS, TWINS, twin

NAMESPACE = "engine"
QUANTIZED_FORMATS = ("q8_0", "q4_0", "q4_1")
PANEL_KERNELS = ("dense", *QUANTIZED_FORMATS)
"""Linears and embeddings of CPU targets: weights in panels, float32 results (see linear/formats.py)."""
ROW_KERNELS = tuple(f"rows_{kernel}" for kernel in PANEL_KERNELS)
"""Those of NVIDIA targets: weights row by row, bfloat16 activations and results (see nvidia/formats.py)."""
FP8_KERNELS = tuple(f"rows_{layout}" for layout in FP8_LAYOUTS)
"""Linears of NVIDIA targets that multiply FP8 activations with FP8 weights (see nvidia/fp8.py)."""
LINEAR_KERNELS = (*PANEL_KERNELS, *ROW_KERNELS, *FP8_KERNELS)
QUANTIZERS = dict.fromkeys(QUANTIZED_FORMATS, "quantize") | {f"rows_{format}": f"quantize_{format}" for format in FP8_FORMATS}
"""For each format whose linears take quantized activations (of row kernels with rows_ before it), the operator that makes them."""
GROUP = 32
"""Consecutive elements that share a scale, in quantized weights and activations."""
ACTIVATION_BYTES = 48
"""Bytes of one group of quantized activations (see linear/activations.py)."""

_SCALES = {format: ", Tensor scale" if format == FP8_STATIC else "" for format in FP8_FORMATS}
_ROW_QUANTIZERS = {"quantize": "", **{f"quantize_{format}": scale for format, scale in _SCALES.items()}}

SCHEMAS = (
    # x [T, K] float32, for quantized kernels what `quantize` gives; w packed (see linear/formats.py); bias [N] and residual [T, N]
    # float32 -> (x w^T + bias) * multiplier + residual, [T, N] float32, every operation rounded on its own
    # of row kernels, x [T, K], residual and result are bfloat16, bias [N] float32
    *(
        f"linear_{kernel}(Tensor x, Tensor w, Tensor? bias, Tensor? residual, int out_features, float multiplier) -> Tensor"
        for kernel in LINEAR_KERNELS
    ),
    # the same with a result in float32, for the LM head
    *(
        f"logits_{kernel}(Tensor x, Tensor w, Tensor? bias, Tensor? residual, int out_features, float multiplier) -> Tensor"
        for kernel in (*ROW_KERNELS, *FP8_KERNELS)
    ),
    # x [T, K] bfloat16, of fp8_tensor also its scale [1] float32 -> uint8 [T, row_bytes]: FP8 numbers with scales (see nvidia/fp8.py)
    *(f"quantize_{format}(Tensor x{scale}) -> Tensor" for format, scale in _SCALES.items()),
    # logits [S, V], temperature, top_p, min_p, uniform [S] float32, top_k [S] int32 -> [S] int32: the token drawn; where the temperature
    # is 0, the lowest index of the largest logit; -1 if that is infinite or one is NaN (see nvidia/sample.py)
    "sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor uniform) -> Tensor",
    # x [T, K] float32 -> uint8 [T, ceil(K / 32), 48]: int8 quants with scales (see linear/activations.py)
    "quantize(Tensor x) -> Tensor",
    # see row_operators.py; with a quantizer's name, what that would make of the result
    *(operator.schema() for operator in ROW_OPERATORS.values()),
    *(operator.schema(quantizer, scale) for operator in TWINS for quantizer, scale in _ROW_QUANTIZERS.items()),
    # tokens [T] int32, w packed like a linear of [V, dim] -> rows * multiplier, [T, dim] float32, or bfloat16 of row kernels
    *(f"embedding_{kernel}(Tensor tokens, Tensor w, int dim, float multiplier) -> Tensor" for kernel in (*PANEL_KERNELS, *ROW_KERNELS)),
    # q [T, QH, D], k and v [T, KH, D] float32; caches [blocks, KH, block_size, D] float32 or bfloat16, or
    # [blocks, KH, block_size, D + 4] int8; cu_seqlens [S+1], seq_lens [S], block_table [S, B], slot_mapping [T] int32;
    # q_norm and k_norm [D], cos and sin [T, R/2], sinks [QH], q_scale [T] float32 -> [T, QH, D] float32
    *(operator.schema for operator in CUT_OPERATORS.values()),
)

_LINEAR = (
    "AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias, AtenTensorHandle* residual, int64_t out_features, double multiplier"
)
_C_ARGUMENTS = {
    **{f"linear_{kernel}": _LINEAR for kernel in PANEL_KERNELS},
    **{f"embedding_{kernel}": "AtenTensorHandle tokens, AtenTensorHandle w, int64_t dim, double multiplier" for kernel in PANEL_KERNELS},
    "quantize": "AtenTensorHandle x",
    **{operator.name: operator.c_arguments for operator in ROW_OPERATORS.values()},
    **{twin(operator.name, "quantize"): operator.c_arguments for operator in TWINS},
}
C_SHIMS = {name: f"AOTITorchError aoti_torch_cpu_{name}({arguments}, AtenTensorHandle* result)" for name, arguments in _C_ARGUMENTS.items()}
"""The C functions (cpu/c_interface.h) by which compiled segments call our operators."""


class _State:
    """What this process has registered. Torch forgets an operator when its Library is collected."""

    schemas: torch.library.Library | None = None
    fakes: bool = False


def define() -> None:
    """Make the schemas known to torch. Calling it again does nothing."""
    if _State.schemas is not None:
        return
    library = torch.library.Library(NAMESPACE, "DEF")
    for schema in SCHEMAS:
        # Strides at run time are those seen while tracing: rows may be slices of a wider tensor.
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
    _State.schemas = library


def load(path: Path) -> None:
    """Define the operators and register the CPU implementations in the kernel library at `path`.

    Raises as `native.load_code` does.
    """
    define()
    load_code(path)


def _linear(x: torch.Tensor, w: torch.Tensor, bias: object, residual: object, out_features: int, multiplier: float) -> torch.Tensor:
    return x.new_empty((x.shape[0], out_features), dtype=torch.float32)


def _row_linear(x: torch.Tensor, w: torch.Tensor, bias: object, residual: object, out_features: int, multiplier: float) -> torch.Tensor:
    return x.new_empty((x.shape[0], out_features), dtype=torch.bfloat16)


def _row_embedding(tokens: torch.Tensor, w: torch.Tensor, dim: int, multiplier: float) -> torch.Tensor:
    return tokens.new_empty((tokens.shape[0], dim), dtype=torch.bfloat16)


def _sample(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return logits.new_empty(logits.shape[:1], dtype=torch.int32)


def _row_operator(x: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty(x.shape)


def _quantizing_row_operator(x: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty((x.shape[0], -(-x.shape[1] // GROUP), ACTIVATION_BYTES), dtype=torch.uint8)


def _quantizing_fp8(format: str) -> Callable[..., torch.Tensor]:
    def shape(x: torch.Tensor, *_: object) -> torch.Tensor:
        return x.new_empty((x.shape[0], fp8_row_bytes(format, x.shape[1])), dtype=torch.uint8)

    return shape


def _embedding(tokens: torch.Tensor, w: torch.Tensor, dim: int, multiplier: float) -> torch.Tensor:
    return tokens.new_empty((tokens.shape[0], dim), dtype=torch.float32)


def _attention(q: torch.Tensor, *_: object) -> torch.Tensor:
    return q.new_empty(q.shape)


def register_fakes() -> None:
    """Define the operators and register their shape functions, so that they can be traced.

    Output sizes follow the inputs' symbolic ones. Calling it again does nothing.
    """
    define()
    if _State.fakes:
        return
    fakes: dict[str, Callable[..., torch.Tensor]] = {"attention": _attention}
    fakes |= dict.fromkeys(ROW_OPERATORS, _row_operator)
    fakes |= dict.fromkeys(("quantize", *(twin(operator.name, "quantize") for operator in TWINS)), _quantizing_row_operator)
    for kernel in PANEL_KERNELS:
        fakes |= {f"linear_{kernel}": _linear, f"embedding_{kernel}": _embedding}
    for kernel in (*ROW_KERNELS, *FP8_KERNELS):
        fakes |= {f"linear_{kernel}": _row_linear, f"logits_{kernel}": _linear}
    fakes |= {f"embedding_{kernel}": _row_embedding for kernel in ROW_KERNELS}
    for format in FP8_FORMATS:
        quantizer = f"quantize_{format}"
        fakes |= dict.fromkeys((quantizer, *(twin(operator.name, quantizer) for operator in TWINS)), _quantizing_fp8(format))
    fakes["sample"] = _sample
    for name, fake in fakes.items():
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_State.schemas)
    _State.fakes = True

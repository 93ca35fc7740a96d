"""Shape functions: what an operator's result looks like, for tracing. Sizes follow the inputs' symbolic ones."""

from collections.abc import Callable

import torch

from .formats import ACTIVATION_BYTES, FP8_KERNELS, GROUP, PANEL_KERNELS, ROW_KERNELS, row_activation_bytes
from .linear.bands import read_bands
from .nvidia.packed_rows import FP8_FORMATS, fp8_row_bytes
from .row_operators import ROW_OPERATORS, TWINS, twin

Fake = Callable[..., torch.Tensor]


def _linear(x: torch.Tensor, w: torch.Tensor, bias: object, residual: object, out_features: int, multiplier: float) -> torch.Tensor:
    return x.new_empty((x.shape[0], out_features), dtype=torch.float32)


def _mixed_linear(x: torch.Tensor, w: torch.Tensor, bias: object, residual: object, bands: str, multiplier: float) -> torch.Tensor:
    return _linear(x, w, bias, residual, sum(band.out_features for band in read_bands(bands)), multiplier)


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


def _row_quantizing_row_operator(x: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty((x.shape[0], row_activation_bytes(x.shape[1])), dtype=torch.uint8)


def _rounding_row_operator(x: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty((x.shape[0], x.shape[1] + x.shape[1] % 2), dtype=torch.bfloat16)


def _quantizing_fp8(format: str) -> Fake:
    def shape(x: torch.Tensor, *_: object) -> torch.Tensor:
        return x.new_empty((x.shape[0], fp8_row_bytes(format, x.shape[1])), dtype=torch.uint8)

    return shape


def _embedding(tokens: torch.Tensor, w: torch.Tensor, dim: int, multiplier: float) -> torch.Tensor:
    return tokens.new_empty((tokens.shape[0], dim), dtype=torch.float32)


def _attention(q: torch.Tensor, *_: object) -> torch.Tensor:
    return q.new_empty(q.shape)


def _mean_pool(x: torch.Tensor, cu_seqlens: torch.Tensor, seq_lens: torch.Tensor) -> torch.Tensor:
    return x.new_empty((seq_lens.shape[0], x.shape[1]))


def _of_quantizer(name: str, fake: Fake) -> dict[str, Fake]:
    """The operator of that name, and the twins of all row operators."""
    return dict.fromkeys((name, *(twin(operator.name, name) for operator in TWINS)), fake)


def fakes() -> dict[str, Fake]:
    """By operator, without the namespace."""
    found: dict[str, Fake] = {
        "attention": _attention,
        "bidirectional_attention": _attention,
        "linear_mixed": _mixed_linear,
        "mean_pool": _mean_pool,
        "sample": _sample,
        **dict.fromkeys(ROW_OPERATORS, _row_operator),
    }
    for kernel in PANEL_KERNELS:
        found |= {f"linear_{kernel}": _linear, f"embedding_{kernel}": _embedding}
    for kernel in (*ROW_KERNELS, *FP8_KERNELS):
        found |= {f"linear_{kernel}": _row_linear, f"logits_{kernel}": _linear}
    found |= {f"embedding_{kernel}": _row_embedding for kernel in ROW_KERNELS}
    found |= _of_quantizer("quantize", _quantizing_row_operator)
    found |= _of_quantizer("quantize_rows", _row_quantizing_row_operator)
    found |= _of_quantizer("round_bf16", _rounding_row_operator)
    for format in FP8_FORMATS:
        found |= _of_quantizer(f"quantize_{format}", _quantizing_fp8(format))
    return found

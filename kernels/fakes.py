"""Shape functions: what an operator's result looks like, for tracing. Sizes follow the inputs' symbolic ones."""

from collections.abc import Callable
from typing import Any

import torch

from .formats import ACTIVATION_BYTES, FLOAT_KERNELS, FP8_KERNELS, GROUP, PANEL_KERNELS, ROW_KERNELS, row_activation_bytes
from .linear.bands import read_bands
from .moe.options import RouteOptions
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


def _attention(q: torch.Tensor, k: object, v: torch.Tensor, *_: object) -> torch.Tensor:
    return q.new_empty((*q.shape[:2], v.shape[2]))


def _latent_attention(q: torch.Tensor, *_: object) -> torch.Tensor:
    return q.new_empty(q.shape)


def _expanded_attention(q: torch.Tensor, latents: object, key_up: object, value_up: torch.Tensor, *_: object) -> torch.Tensor:
    return q.new_empty((q.shape[0], q.shape[1], value_up.shape[0] // q.shape[1]))


def _mean_pool(x: torch.Tensor, cu_seqlens: torch.Tensor, seq_lens: torch.Tensor) -> torch.Tensor:
    return x.new_empty((seq_lens.shape[0], x.shape[1]))


def _route(logits: torch.Tensor, choice_bias: object, expert_scale: object, *options: Any) -> torch.Tensor:
    return logits.new_empty((logits.shape[0], 2, RouteOptions.of(options).k), dtype=torch.int32)


def _route_table(routes: torch.Tensor, experts: int) -> torch.Tensor:
    return routes.new_empty((routes.shape[0], experts), dtype=torch.float32)


def _sort_routes(routes: torch.Tensor, experts: int) -> torch.Tensor:
    return routes.new_empty((experts + 1 + 2 * routes.shape[0] * routes.shape[2],))


def _equal_order(x: torch.Tensor, experts: int) -> torch.Tensor:
    return x.new_empty((experts + 1 + 2 * x.shape[0],), dtype=torch.int32)


def _gather_rows(x: torch.Tensor, routes: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return x.new_empty((routes.shape[0] * routes.shape[2], *x.shape[1:]))


def _experts_linear(x: torch.Tensor, w: torch.Tensor, bias: object, order: torch.Tensor, experts: int) -> torch.Tensor:
    return x.new_empty((x.shape[0], w.shape[0] // experts))


def _experts(x: torch.Tensor, w: torch.Tensor, bias: object, order: torch.Tensor, out_features: int, experts: int) -> torch.Tensor:
    return x.new_empty((x.shape[0], out_features), dtype=torch.float32)


def _mixed_experts(x: torch.Tensor, w: torch.Tensor, bias: object, order: torch.Tensor, bands: str, experts: int) -> torch.Tensor:
    return x.new_empty((x.shape[0], sum(band.out_features for band in read_bands(bands))), dtype=torch.float32)


def _row_experts(
    x: torch.Tensor, w: torch.Tensor, bias: object, order: torch.Tensor, out_features: int, experts: int, parts: int, gather: bool
) -> torch.Tensor:
    pairs = (order.shape[0] - experts - 1) // 2 if gather else x.shape[0]
    return x.new_empty((pairs, out_features), dtype=torch.bfloat16)


def _combine_experts(y: torch.Tensor, routes: torch.Tensor, *_: object) -> torch.Tensor:
    return y.new_empty((routes.shape[0], y.shape[1]))


def _of_quantizer(name: str, fake: Fake) -> dict[str, Fake]:
    """The operator of that name, and the twins of all row operators."""
    return dict.fromkeys((name, *(twin(operator.name, name) for operator in TWINS)), fake)


def fakes() -> dict[str, Fake]:
    """By operator, without the namespace."""
    found: dict[str, Fake] = {
        "attention": _attention,
        "bidirectional_attention": _attention,
        "latent_attention": _latent_attention,
        "expanded_attention": _expanded_attention,
        "linear_mixed": _mixed_linear,
        "route": _route,
        "route_table": _route_table,
        "sort_routes": _sort_routes,
        "equal_order": _equal_order,
        "gather_rows": _gather_rows,
        "weigh_rows": _gather_rows,
        "experts_linear": _experts_linear,
        **{f"experts_{kernel}": _experts for kernel in FLOAT_KERNELS},
        "experts_mixed": _mixed_experts,
        "combine_experts": _combine_experts,
        "mean_pool": _mean_pool,
        "sample": _sample,
        **dict.fromkeys(ROW_OPERATORS, _row_operator),
    }
    for kernel in PANEL_KERNELS:
        found |= {f"linear_{kernel}": _linear, f"embedding_{kernel}": _embedding}
    for kernel in (*ROW_KERNELS, *FP8_KERNELS):
        found |= {f"linear_{kernel}": _row_linear, f"logits_{kernel}": _linear, f"experts_{kernel}": _row_experts}
    found |= {f"embedding_{kernel}": _row_embedding for kernel in ROW_KERNELS}
    found |= _of_quantizer("quantize", _quantizing_row_operator)
    found |= _of_quantizer("quantize_rows", _row_quantizing_row_operator)
    found |= _of_quantizer("round_bf16", _rounding_row_operator)
    for format in FP8_FORMATS:
        found |= _of_quantizer(f"quantize_{format}", _quantizing_fp8(format))
    return found

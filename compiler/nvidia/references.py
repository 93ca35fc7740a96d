"""The reference of every operator as it is computed on NVIDIA: float32 inside, rounded once at the result."""

from collections.abc import Callable
from typing import Any

import torch

from ...kernels.formats import FP8_FORMATS, FP8_KERNELS, ROW_KERNELS
from ...kernels.moe import reference as moe
from ...kernels.nvidia import reference
from ...kernels.row_operators import TWINS, twin
from ...kernels.row_references import ROW_REFERENCES, quantized_twin

Operator = Callable[..., torch.Tensor]


def reference_operators() -> dict[str, Operator]:
    """The reference of every operator of ours, by its name in a graph."""
    operators: dict[str, Operator] = {
        "sample": reference.sample,
        "attention": _in_float32(reference.attention_operator),
        "latent_attention": _in_float32(reference.latent_attention),
    }
    operators |= {name: _in_float32(operator) for name, operator in ROW_REFERENCES.items()}
    operators |= {"route": _widening(moe.route), "sort_routes": moe.sort_routes, "equal_order": moe.equal_order}
    operators |= {name: _rounded(_widening(getattr(moe, name))) for name in ("weigh_rows", "combine_experts")}
    for kernel in (*ROW_KERNELS, *FP8_KERNELS):
        packed = kernel.removeprefix("rows_")
        operators[f"linear_{kernel}"] = _rounded(_with_kernel(reference.logits_rows, packed))
        operators[f"logits_{kernel}"] = _with_kernel(reference.logits_rows, packed)
        operators[f"experts_{kernel}"] = _rounded(_with_kernel(reference.experts_rows, packed))
        operators[f"embedding_{kernel}"] = _rounded(_with_kernel(reference.embedding_rows, packed))
    for format in FP8_FORMATS:
        quantize = _with_kernel(reference.quantize_fp8, format)
        operators[f"quantize_{format}"] = quantize
        operators |= {twin(row.name, f"quantize_{format}"): _widening(quantized_twin(row.name, quantize)) for row in TWINS}
    return {f"engine.{name}.default": operator for name, operator in operators.items()}


def _in_float32(operator: Operator) -> Operator:
    """As `operator`, with activations in float32; caches, of 4 dimensions, are written as they are."""

    widening = _widening(operator)
    return lambda *arguments: widening(*arguments).to(arguments[0].dtype)


def _widening(operator: Operator) -> Operator:
    """As `operator`, with activations in float32, in which it computes."""
    return lambda *arguments: operator(*(_widened(argument) for argument in arguments))


def _widened(argument: Any) -> Any:
    is_activation = isinstance(argument, torch.Tensor) and argument.is_floating_point() and argument.dim() < 4
    return argument.float() if is_activation else argument


def _with_kernel(operator: Operator, kernel: str) -> Operator:
    return lambda *arguments: operator(kernel, *arguments)


def _rounded(operator: Operator) -> Operator:
    return lambda *arguments: operator(*arguments).bfloat16()

"""The C functions of our operators for CPU (cpu/c_interface.h), by which compiled segments call them."""

from .formats import FLOAT_KERNELS, PANEL_KERNELS, PANEL_QUANTIZERS
from .moe.options import C_ARGUMENTS as ROUTE_OPTIONS
from .row_operators import ROW_OPERATORS, TWINS, twin

_LINEAR = (
    "AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias, AtenTensorHandle* residual, int64_t out_features, double multiplier"
)
_EXPERTS = "AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias, AtenTensorHandle order"
_C_ARGUMENTS = {
    "linear_mixed": _LINEAR.replace("int64_t out_features", "const char* bands"),
    "route": f"AtenTensorHandle logits, AtenTensorHandle* choice_bias, AtenTensorHandle* expert_scale, {ROUTE_OPTIONS}",
    "route_table": "AtenTensorHandle routes, int64_t experts",
    "sort_routes": "AtenTensorHandle routes, int64_t experts",
    "equal_order": "AtenTensorHandle x, int64_t experts",
    **dict.fromkeys(("gather_rows", "weigh_rows"), "AtenTensorHandle x, AtenTensorHandle routes, AtenTensorHandle order"),
    **dict.fromkeys((f"experts_{kernel}" for kernel in FLOAT_KERNELS), f"{_EXPERTS}, int64_t out_features, int64_t experts"),
    "experts_mixed": f"{_EXPERTS}, const char* bands, int64_t experts",
    "combine_experts": "AtenTensorHandle y, AtenTensorHandle routes, AtenTensorHandle order, AtenTensorHandle* shared, "
    "AtenTensorHandle* gate, AtenTensorHandle* residual, double multiplier, int32_t weighted",
    **{f"linear_{kernel}": _LINEAR for kernel in PANEL_KERNELS},
    **{f"embedding_{kernel}": "AtenTensorHandle tokens, AtenTensorHandle w, int64_t dim, double multiplier" for kernel in PANEL_KERNELS},
    **dict.fromkeys(PANEL_QUANTIZERS.values(), "AtenTensorHandle x"),
    **{operator.name: operator.c_arguments for operator in ROW_OPERATORS.values()},
    **{twin(operator.name, quantizer): operator.c_arguments for operator in TWINS for quantizer in PANEL_QUANTIZERS.values()},
}
C_SHIMS = {name: f"AOTITorchError aoti_torch_cpu_{name}({arguments}, AtenTensorHandle* result)" for name, arguments in _C_ARGUMENTS.items()}
"""Declarations, by operator."""

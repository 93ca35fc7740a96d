"""The C functions of our operators for CPU (cpu/c_interface.h), by which compiled segments call them."""

from .formats import PANEL_KERNELS, PANEL_QUANTIZERS
from .row_operators import ROW_OPERATORS, TWINS, twin

_LINEAR = (
    "AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias, AtenTensorHandle* residual, int64_t out_features, double multiplier"
)
_C_ARGUMENTS = {
    "linear_mixed": _LINEAR.replace("int64_t out_features", "const char* bands"),
    **{f"linear_{kernel}": _LINEAR for kernel in PANEL_KERNELS},
    **{f"embedding_{kernel}": "AtenTensorHandle tokens, AtenTensorHandle w, int64_t dim, double multiplier" for kernel in PANEL_KERNELS},
    **dict.fromkeys(PANEL_QUANTIZERS.values(), "AtenTensorHandle x"),
    **{operator.name: operator.c_arguments for operator in ROW_OPERATORS.values()},
    **{twin(operator.name, quantizer): operator.c_arguments for operator in TWINS for quantizer in PANEL_QUANTIZERS.values()},
}
C_SHIMS = {name: f"AOTITorchError aoti_torch_cpu_{name}({arguments}, AtenTensorHandle* result)" for name, arguments in _C_ARGUMENTS.items()}
"""Declarations, by operator."""

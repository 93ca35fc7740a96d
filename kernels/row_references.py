"""The reference of every row operator, by name."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .activations import reference as activations
from .norms import reference as norms
from .row_operators import CLAMPED, ROW_OPERATORS

Reference = Callable[..., Tensor]

ROW_REFERENCES: dict[str, Reference] = {
    "rms_norm": norms.rms_norm,
    "layer_norm": norms.layer_norm,
    "rms_norm_heads": norms.rms_norm_heads,
    "layer_norm_heads": norms.layer_norm_heads,
    "scale_heads": lambda x, factors: x * factors[:, :, None],
    **activations.FUNCTIONS,
    **{f"{name}_mul": activations.gated(function) for name, function in activations.FUNCTIONS.items()},
    **{f"{name}_mul_clamped": activations.clamped(activations.FUNCTIONS[name]) for name in CLAMPED},
    "xielu": activations.xielu,
    "soft_cap": activations.soft_cap,
    "clip": activations.clip,
    "scale": lambda x, factor: x * factor,
    "scaled_add": lambda x, y, multiplier: x + multiplier * y,
}


def quantized_twin(name: str, quantize: Callable[..., Tensor]) -> Reference:
    """The reference of an operator's twin. quantize: of the result and what arguments the twin has more than the operator."""
    count = len(ROW_OPERATORS[name].arguments)

    def computed(*arguments: Any) -> Tensor:
        return quantize(ROW_REFERENCES[name](*arguments[:count]), *arguments[count:])

    return computed

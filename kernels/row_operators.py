"""The row operators: what lies between linears and attention, each row by itself. The one place where they are registered.

Schemas, shape functions, declarations for C, references and what the passes know of them are derived from
`ROW_OPERATORS`. An operator has a twin per quantizer, `rms_norm_quantize` say: the same arguments,
and the result as `quantize` would make it.

Legend: T rows, K features of a row.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["rows", "rows?", "heads", "numbers", "vector", "vector?", "scalar", "float"]
"""rows: [T, K] float32 (bfloat16 on NVIDIA), row i of which decides row i of the result; heads: the same of [T, H, D]; numbers: of
[T, H], one for each head. vector: a weight [K], of heads [D] or [H, D]; scalar: one of a single element; both float32. float: a number.
?: or none."""

_SCHEMA: dict[Kind, str] = {
    "rows": "Tensor",
    "rows?": "Tensor?",
    "heads": "Tensor",
    "numbers": "Tensor",
    "vector": "Tensor",
    "vector?": "Tensor?",
    "scalar": "Tensor",
    "float": "float",
}
_C = {"Tensor": "AtenTensorHandle", "Tensor?": "AtenTensorHandle*", "float": "double"}

FUNCTIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu", "sigmoid", "softplus")
"""Activation functions without parameters (activations/reference.py says what each is): operators alone, and with _mul as gates."""

CLAMPED = ("silu", "quick_gelu")
"""Those that also gate clamped operands: function(min(gate, limit)) * (up within -limit .. limit, + plus), with _mul_clamped."""


@dataclass(frozen=True, kw_only=True)
class RowOperator:
    """arguments: name and kind, in the order of the schema; the first are rows of the result's shape.

    logits: whether rows are logits, float32 on every target. cpu_only: other targets leave it to their compiler. All others have twins.
    """

    name: str
    arguments: tuple[tuple[str, Kind], ...]
    logits: bool = False
    cpu_only: bool = False

    @property
    def rows(self) -> tuple[int, ...]:
        """Positions of the arguments that have the result's rows."""
        return tuple(index for index, (_, kind) in enumerate(self.arguments) if kind.startswith(("rows", "heads", "numbers")))

    def position(self, argument: str) -> int:
        return [name for name, _ in self.arguments].index(argument)

    def schema(self, quantizer: str = "", scale: str = "") -> str:
        """The schema, or that of the twin. scale: the argument that the quantizer adds."""
        arguments = ", ".join(f"{_SCHEMA[kind]} {name}" for name, kind in self.arguments)
        return f"{twin(self.name, quantizer) if quantizer else self.name}({arguments}{scale}) -> Tensor"

    @property
    def c_arguments(self) -> str:
        return ", ".join(f"{_C[_SCHEMA[kind]]} {name}" for name, kind in self.arguments)


def twin(operator: str, quantizer: str) -> str:
    """Name of the operator whose result is quantized at once."""
    return f"{operator}_{quantizer}"


def _operator(name: str, /, logits: bool = False, cpu_only: bool = False, **arguments: Kind) -> RowOperator:
    return RowOperator(name=name, arguments=tuple(arguments.items()), logits=logits, cpu_only=cpu_only)


ROW_OPERATORS: dict[str, RowOperator] = {
    operator.name: operator
    for operator in (
        # x normalized, * weight, + bias, + residual (see norms/reference.py)
        _operator("rms_norm", x="rows", weight="vector?", residual="rows?", eps="float"),
        _operator("layer_norm", x="rows", weight="vector?", bias="vector?", residual="rows?", eps="float"),
        # the same over every head
        _operator("rms_norm_heads", cpu_only=True, x="heads", weight="vector?", eps="float"),
        _operator("layer_norm_heads", cpu_only=True, x="heads", weight="vector?", bias="vector?", eps="float"),
        # every head times its number
        _operator("scale_heads", cpu_only=True, x="heads", factors="numbers"),
        # function(x), and function(gate) * up (see activations/reference.py)
        *(_operator(name, x="rows") for name in FUNCTIONS),
        *(_operator(f"{name}_mul", gate="rows", up="rows") for name in FUNCTIONS),
        *(_operator(f"{name}_mul_clamped", cpu_only=True, gate="rows", up="rows", limit="float", plus="float") for name in CLAMPED),
        _operator("xielu", x="rows", alpha_p="scalar", alpha_n="scalar", beta="scalar", eps="scalar"),
        # cap * tanh(x / cap)
        _operator("soft_cap", logits=True, x="rows", cap="float"),
        # x, at least -limit and at most limit
        _operator("clip", cpu_only=True, x="rows", limit="float"),
        # x * factor
        _operator("scale", cpu_only=True, x="rows", factor="scalar"),
        # x + multiplier * y
        _operator("scaled_add", cpu_only=True, x="rows", y="rows", multiplier="float"),
    )
}
"""By name."""

TWINS = tuple(operator for operator in ROW_OPERATORS.values() if not operator.logits and not operator.cpu_only)
"""Those with a twin per quantizer."""

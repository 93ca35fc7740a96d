"""Our operators for activation functions over the rows of a matrix.

    silu(x), gelu(x), gelu(x, approximate="tanh")    ->  engine.silu(x), engine.gelu(x), engine.gelu_tanh(x)
    relu(x)                                          ->  engine.relu(x)
    square(relu(x))                                  ->  engine.relu2(x)
    x * sigmoid(1.702 * x)                           ->  engine.quick_gelu(x)
    sigmoid(x), softplus(x)                          ->  engine.sigmoid(x), engine.softplus(x)

Why: one pass over the rows, on all threads, with vectorised exponents; and the place where
fuse_gate can multiply it and fuse_quantize take it without it ever being written.

When not: on anything but [T, K], or a softplus that is bent elsewhere.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from .rewrite import is_matrix, only_user, operands, replace, rewrite_each

_aten = torch.ops.aten
_QUICK = 1.702


def fuse_activation(graph: fx.Graph) -> int:
    """Rewrite every activation function in `graph`; returns how many."""
    return sum(rewrite_each(graph, target, _fuse) for target in _MATCHES)


def _fuse(graph: fx.Graph, node: fx.Node) -> bool:
    name, x, result = _MATCHES[node.target](node)
    if not is_matrix(x) or (name == "softplus" and len(node.args) > 1):
        return False
    replace(graph, result, getattr(torch.ops.engine, name).default, (x,))
    return True


def _silu(node: fx.Node) -> tuple[str, Any, fx.Node]:
    return "silu", node.args[0], node


def _gelu(node: fx.Node) -> tuple[str, Any, fx.Node]:
    return "gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu", node.args[0], node


def _relu(node: fx.Node) -> tuple[str, Any, fx.Node]:
    user = only_user(node)
    is_square = user is not None and (user.target is _aten.square.default or (user.target is _aten.pow.Tensor_Scalar and user.args[1] == 2))
    return ("relu2", node.args[0], user) if is_square and user is not None else ("relu", node.args[0], node)


def _softplus(node: fx.Node) -> tuple[str, Any, fx.Node]:
    return "softplus", node.args[0], node


def _sigmoid(node: fx.Node) -> tuple[str, Any, fx.Node]:
    scaled: Any = node.args[0]
    product = only_user(node)
    is_quick = scaled.target is _aten.mul.Tensor and scaled.args[1] == _QUICK and only_user(scaled) is node
    if product is not None and is_quick and set(operands(product, _aten.mul.Tensor) or ()) == {scaled.args[0], node}:
        return "quick_gelu", scaled.args[0], product
    return "sigmoid", scaled, node


_MATCHES: Mapping[Any, Callable[[fx.Node], tuple[str, Any, fx.Node]]] = {
    _aten.silu.default: _silu,
    _aten.gelu.default: _gelu,
    _aten.relu.default: _relu,
    _aten.sigmoid.default: _sigmoid,
    _aten.softplus.default: _softplus,
}
"""For the operator at the heart of a function: our operator's name, its argument, and the node that is its result."""

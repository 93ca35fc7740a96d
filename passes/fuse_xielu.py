"""One operator for xIELU over the rows of a matrix.

    where(x > 0, alpha_p * x * x, (expm1(minimum(x, eps)) - x) * alpha_n) + beta * x
                ->  engine.xielu(x, alpha_p, alpha_n, beta, eps)

Why: as fuse_activation.

When not: on anything but [T, K], or when an intermediate value is used elsewhere. The parameters
may come from anything of a single element.
"""

from typing import Any

import torch
from torch import fx

from .rewrite import is_matrix, only_user, operands, replace, rewrite_each

_aten = torch.ops.aten


def fuse_xielu(graph: fx.Graph) -> int:
    """Rewrite every xIELU in `graph`; returns how many."""
    return rewrite_each(graph, _aten.where.self, _fuse)


def _fuse(graph: fx.Graph, where: fx.Node) -> bool:
    condition: Any = where.args[0]
    result = only_user(where)
    if condition.target is not _aten.gt.Scalar or condition.args[1] != 0 or result is None:
        return False
    x = condition.args[0]
    positive, negative, linear = _positive(where.args[1], x), _negative(where.args[2], x), _linear(result, where, x)
    if positive is None or negative is None or linear is None or not is_matrix(x):
        return False
    (alpha_n, eps) = negative
    if any(parameter.meta["val"].numel() != 1 for parameter in (positive, alpha_n, linear, eps)):
        return False
    replace(graph, result, torch.ops.engine.xielu.default, (x, positive, alpha_n, linear, eps))
    return True


def _other(node: Any, target: Any, known: fx.Node) -> fx.Node | None:
    """The operand beside `known` of a binary operator's call with one reader."""
    pair = operands(node, target)
    if pair is None or known not in pair or only_user(node) is None:
        return None
    return pair[0] if pair[1] is known else pair[1]


def _positive(node: Any, x: fx.Node) -> fx.Node | None:
    """alpha_p of alpha_p * x * x"""
    scaled = _other(node, _aten.mul.Tensor, x)
    return None if scaled is None else _other(scaled, _aten.mul.Tensor, x)


def _negative(node: Any, x: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """alpha_n and eps of (expm1(minimum(x, eps)) - x) * alpha_n"""
    factors = operands(node, _aten.mul.Tensor)
    if factors is None or only_user(node) is None:
        return None
    for bend, alpha_n in (factors, factors[::-1]):
        difference = operands(bend, _aten.sub.Tensor)
        if difference is None or difference[1] is not x or only_user(bend) is None:
            continue
        power: Any = difference[0]
        if power.target is _aten.expm1.default and only_user(power) is not None:
            eps = _other(power.args[0], _aten.minimum.default, x)
            return None if eps is None else (alpha_n, eps)
    return None


def _linear(result: fx.Node, where: fx.Node, x: fx.Node) -> fx.Node | None:
    """beta of where + beta * x"""
    terms = operands(result, _aten.add.Tensor)
    if terms is None:
        return None
    return _other(terms[1] if terms[0] is where else terms[0], _aten.mul.Tensor, x)

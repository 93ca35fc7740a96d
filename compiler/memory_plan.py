"""How much memory a step can need, read off the graph, so that serving needs no profiling run."""

from collections import Counter
from collections.abc import Iterable, Mapping

import sympy
import torch
from sympy.polys.polyerrors import BasePolynomialError
from torch import fx
from torch.utils._sympy.functions import CeilDiv, FloorDiv

from ..artifacts import InputInfo
from ..errors import BuildError
from .partition import CUT_OPERATORS


def plan_activations(graph: fx.Graph, inputs: Iterable[InputInfo]) -> dict[str, int]:
    """Upper bound on live activations: for each piece between two cuts, everything computed in it
    plus everything that lives across it. Inductor fuses and reuses, so a step stays below this.

    inputs: the step's, whose dimensions the bound is in. Raises BuildError for a tensor whose size
    is no polynomial in them.
    """
    dims = _dimensions(graph, inputs)
    piece_of = _pieces(graph)
    live: dict[int, Counter[str]] = {piece: Counter() for piece in piece_of.values()}
    end = max(live, default=0)  # until which results live
    for node, made in piece_of.items():
        size = _bytes(node, dims)
        last = max((end if user.op == "output" else piece_of.get(user, made) for user in node.users), default=made)
        for piece in range(made, last + 1):
            if piece in live:
                live[piece].update(size)
    peak: Counter[str] = Counter()
    for total in live.values():
        peak |= total  # of every term the most that any piece has
    return dict(sorted(peak.items()))


def _dimensions(graph: fx.Graph, inputs: Iterable[InputInfo]) -> dict[sympy.Symbol, sympy.Expr]:
    """What the symbols of the graph's sizes stand for; S1 is S + 1."""
    named = {f"input:{info.name}": info.dims for info in inputs}
    found: dict[sympy.Symbol, sympy.Expr] = {}
    for node in graph.find_nodes(op="placeholder"):
        for size, dim in zip(_shape(node), named.get(node.meta.get("ref"), ()), strict=False):
            if isinstance(size, sympy.Symbol):
                found[size] = _symbol("S") + 1 if dim == "S1" else _symbol(dim)
    return found


def _symbol(dim: str) -> sympy.Symbol:
    return sympy.Symbol(dim, integer=True, nonnegative=True)


def _pieces(graph: fx.Graph) -> dict[fx.Node, int]:
    pieces: dict[fx.Node, int] = {}
    current = 0
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor):
            pieces[node] = current
            current += str(node.target) in CUT_OPERATORS
    return pieces


def _shape(node: fx.Node) -> list[sympy.Expr]:
    return [sympy.sympify(size.node.expr if isinstance(size, torch.SymInt) else size) for size in node.meta["val"].shape]


def _bytes(node: fx.Node, dims: Mapping[sympy.Symbol, sympy.Expr]) -> dict[str, int]:
    """At most so many bytes: quotients are not rounded down, and nothing is subtracted."""
    exact = sympy.prod(_shape(node)) * node.meta["val"].dtype.itemsize
    bound = exact.replace(FloorDiv, lambda a, b: a / b).replace(CeilDiv, lambda a, b: (a + b - 1) / b).xreplace(dict(dims))
    names = sorted({symbol for value in dims.values() for symbol in value.free_symbols}, key=str)
    try:
        terms = sympy.Poly(bound, *names, domain="QQ").terms() if names else [((), sympy.Rational(bound))]
    except (BasePolynomialError, TypeError, ValueError):
        raise BuildError(
            f"the memory of {node.name} [{', '.join(map(str, _shape(node)))}] cannot be bounded by the sizes of a step's inputs",
            hint="the model must derive every size from the shapes of its inputs",
        ) from None
    found = {
        "*".join(str(name) for name, power in zip(names, powers, strict=True) for _ in range(power)): int(sympy.ceiling(factor))
        for powers, factor in terms
    }
    return {term or "1": factor for term, factor in found.items() if factor > 0}

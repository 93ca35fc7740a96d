"""What every token shares beside its experts becomes one more of them.

    routes = route(logits, ..., k, ...), order = sort_routes(routes, E), rows = gather_rows(x, routes, order)
    y = experts_f(g(experts_f(rows, w_gate, order), experts_f(rows, w_up, order)), w_down, order)
    shared = linear_f(g(linear_f(x, s_gate), linear_f(x, s_up)), s_down)
    combine_experts(y, routes, order, shared, None, ...)
                ->  routes = route(logits, ..., k, ..., shared=1), order = sort_routes(routes, E + 1), rows likewise
                    y = experts_f(g(experts_f(rows, w_gate|s_gate, order), experts_f(rows, w_up|s_up, order)), w_down|s_down, order)
                    combine_experts(y, routes, order, None, None, ...)

Why: its linears, its activation and its quantization are calls of their own otherwise, each of which starts and ends the threads' common
work, or is a launch.

When not: when it is not of the size, the formats and the arithmetic of an expert, or has a gate; when experts read rows that were weighted;
when the router's choices are results of the program (`--capture-routes`), which are those it chose. Numerics do not change: a linear has
the same bits among experts, its weight is 1, and it is added last as before.
"""

from typing import Any, NamedTuple

import torch
from torch import fx

from ..kernels.formats import FLOAT_KERNELS, FP8_KERNELS, ROW_KERNELS
from ..kernels.moe.options import RouteOptions
from .linears import LinearArguments, is_linear, linear_arguments
from .rewrite import call_like, join, only_user, replace, rewrite_each

_engine = torch.ops.engine
_Twins = dict[fx.Node, fx.Node]
"""By a grouped linear, that of the shared expert."""


class _Experts(NamedTuple):
    """A grouped linear, in the order of the schema. more: of kernels that read rows, their parts, and whether they gather rows of x."""

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    order: fx.Node
    outputs: int | str
    experts: int
    more: tuple[int, ...]

    @property
    def gathered(self) -> fx.Node | None:
        """What rows were gathered of, where they are those of tokens."""
        if self.x.target is _engine.gather_rows.default:
            source: Any = self.x.args[0]
            return source  # type: ignore[no-any-return]
        return self.x if self.more[1:] == (True,) else None


def join_shared_expert(graph: fx.Graph) -> int:
    """Rewrite every sum of experts and of one that is like them; returns how many."""
    return rewrite_each(graph, _engine.combine_experts.default, _join)


def _join(graph: fx.Graph, combine: fx.Node) -> bool:
    arguments: Any = combine.args
    y, routes, order, shared, gate, residual, multiplier, weighted = arguments
    if shared is None or gate is not None or not weighted or routes.target is not _engine.route.default:
        return False
    twins = _twins(y, shared)
    if not twins or not _is_read_only_by(twins, combine, routes, order):
        return False
    logits, choice_bias, expert_scale, *options = routes.args
    with graph.inserting_before(combine):
        with_one = RouteOptions.of(options).with_shared(1).arguments
        routes = call_like(graph, routes.target, (logits, choice_bias, expert_scale, *with_one))
        order = call_like(graph, order.target, (routes, order.args[1] + 1))
        y = _Copying(graph, twins, routes, order).copied(y)
    replace(graph, combine, combine.target, (y, routes, order, None, None, residual, multiplier, weighted))
    return True


def _is_read_only_by(twins: _Twins, combine: fx.Node, routes: fx.Node, order: fx.Node) -> bool:
    """Whether nothing else reads choices or their order."""
    gathers = {rows for node in twins if (rows := _experts(node).x).target is _engine.gather_rows.default}
    return {*routes.users} == {order, combine, *gathers} and {*order.users} == {combine, *gathers, *twins}


def _twins(grouped: Any, plain: Any) -> _Twins | None:
    """The linears that make both, if one is to a token what the other is to each pair of token and expert."""
    if not isinstance(grouped, fx.Node) or not isinstance(plain, fx.Node):
        return {} if type(grouped) is type(plain) and grouped == plain else None
    if grouped is plain:
        return {}
    if _is_grouped(grouped):
        return _twin_linears(grouped, plain)
    if grouped.op != "call_function" or grouped.target is not plain.target or len(grouped.args) != len(plain.args):
        return None
    found: _Twins = {}
    for one, other in zip((*grouped.args, *grouped.kwargs.items()), (*plain.args, *plain.kwargs.items()), strict=True):
        if (twins := _twins(one, other)) is None:
            return None
        found |= twins
    return found


def _twin_linears(grouped: fx.Node, plain: fx.Node) -> _Twins | None:
    if not is_linear(plain):
        return None
    each, one = _experts(grouped), linear_arguments(plain)
    if not _is_alike(each, one) or only_user(each.weight) is not grouped or only_user(one.weight) is not plain:
        return None
    deeper = _twins(each.x, one.x) if each.gathered is None else {} if each.gathered is one.x else None
    return None if deeper is None else {grouped: plain} | deeper


def _is_alike(each: _Experts, one: LinearArguments) -> bool:
    format = each.weight.meta["format"]
    of_one = format == one.weight.meta["format"] and each.outputs in (one.out_features, f"{format}:{one.out_features}")
    return of_one and each.more[:1] in ((), (1,)) and (each.bias, one.bias, one.residual, one.multiplier) == (None, None, None, 1.0)


def _is_grouped(node: fx.Node) -> bool:
    names = (*FLOAT_KERNELS, "mixed", *ROW_KERNELS, *FP8_KERNELS)
    return node.target in {getattr(_engine, f"experts_{name}").default for name in names}


def _experts(node: fx.Node) -> _Experts:
    arguments: Any = node.args
    x, weight, bias, order, outputs, experts, *more = arguments
    return _Experts(x, weight, bias, order, outputs, experts, tuple(more))


class _Copying:
    """What experts compute, once more, with one more of them."""

    def __init__(self, graph: fx.Graph, twins: _Twins, routes: fx.Node, order: fx.Node) -> None:
        self._graph, self._twins, self._routes, self._order = graph, twins, routes, order
        self._copies: dict[fx.Node, fx.Node] = {}

    def copied(self, node: fx.Node) -> fx.Node:
        if node not in self._copies:
            self._copies[node] = self._made(node)
        return self._copies[node]

    def _made(self, node: fx.Node) -> fx.Node:
        if node.op != "call_function":
            return node
        if node.target is _engine.gather_rows.default:
            return call_like(self._graph, node.target, (node.args[0], self._routes, self._order))
        if node not in self._twins:
            return call_like(self._graph, node.target, fx.map_arg(node.args, self.copied), dict(node.kwargs))
        each, one = _experts(node), linear_arguments(self._twins[node])
        weight = join(self._graph, [each.weight, one.weight], "concat")
        x = each.x if each.gathered is each.x else self.copied(each.x)
        return call_like(self._graph, node.target, (x, weight, None, self._order, each.outputs, each.experts + 1, *each.more))

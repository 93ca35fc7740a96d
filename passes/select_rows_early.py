"""Rows that nobody reads are not computed.

    index_select(f(x), 0, rows)    ->  f(index_select(x, 0, rows))      for f that treats rows alone
    index_select(combine_experts(g(gather_rows(x, routes, order)), routes, order, ...), 0, rows)
                                   ->  the same of index_select(x, 0, rows) and index_select(routes, 0, rows), sorted anew

Why: only the rows whose logits are wanted go to the LM head, so behind the last attention only those
matter: a long prompt saves all but one row of the last layer's linears, and of its experts.

When not: when another reader wants all rows. Numerics do not change: each row is computed as before.
"""

from typing import Any

import torch
from torch import fx

from ..kernels.formats import FP8_KERNELS, LINEAR_KERNELS, QUANTIZERS, ROW_KERNELS
from ..kernels.row_operators import ROW_OPERATORS, TWINS, twin
from .rewrite import call_like, erase_unused

_SELECT = torch.ops.aten.index_select.default


def select_rows_early(graph: fx.Graph) -> int:
    """Move row selections towards the inputs of `graph` as far as they go; returns past how many operators."""
    moved = 0
    row_arguments = _row_arguments()
    for node in reversed(list(graph.nodes)):
        rows = _selected_rows(node)
        if rows is None:
            continue
        if node.target is torch.ops.engine.combine_experts.default:
            moved += _move_before_experts(graph, node, rows)
        elif node.target in row_arguments:
            _move(graph, node, rows, row_arguments[node.target])
            moved += 1
    return moved


def _row_arguments() -> dict[Any, tuple[int, ...]]:
    """Operators that treat rows alone, and which of their arguments have the same rows."""
    engine = torch.ops.engine
    linears = {getattr(engine, f"linear_{kernel}").default: (0, 3) for kernel in LINEAR_KERNELS}
    rows: dict[Any, tuple[int, ...]] = {getattr(engine, name).default: row.rows for name, row in ROW_OPERATORS.items()}
    for quantizer in set(QUANTIZERS.values()):
        rows |= {getattr(engine, quantizer).default: (0,)}
        rows |= {getattr(engine, twin(row.name, quantizer)).default: row.rows for row in TWINS}
    return linears | rows | {torch.ops.aten.slice.Tensor: (0,), _SELECT: (0,), engine.route.default: (0,)}


def _selected_rows(node: fx.Node) -> fx.Node | None:
    """The rows that every reader of `node` selects, if they all select the same ones."""
    if not node.users or any(user.target is not _SELECT or user.args[:2] != (node, 0) for user in node.users):
        return None
    if node.target in (torch.ops.aten.slice.Tensor, _SELECT) and node.args[1] == 0:
        return None
    rows = {user.args[2] for user in node.users}
    only = rows.pop()
    return only if not rows and isinstance(only, fx.Node) else None


def _move(graph: fx.Graph, node: fx.Node, rows: fx.Node, row_arguments: tuple[int, ...]) -> None:
    _bring_before(node, rows)
    args: list[Any] = list(node.args)
    with graph.inserting_before(node):
        for index in row_arguments:
            if args[index] is not None:
                args[index] = call_like(graph, _SELECT, (args[index], 0, rows))
        smaller = call_like(graph, node.target, tuple(args))
    _put_in_place(graph, node, smaller)


def _move_before_experts(graph: fx.Graph, combine: fx.Node, rows: fx.Node) -> int:
    """Past all that experts compute, and their sum; returns past how many operators."""
    given: Any = combine.args
    y, routes, order, *beside, multiplier, weighted = given
    between = _between(y, order)
    if any(user not in between and user is not combine for node in between for user in node.users):
        return 0
    _bring_before(between[0], rows)
    with graph.inserting_before(between[0]):
        chosen = call_like(graph, _SELECT, (routes, 0, rows))
    smaller: dict[fx.Node, fx.Node] = {routes: chosen}
    with graph.inserting_before(combine):
        for node in between:
            arguments: Any = fx.map_arg(node.args, lambda source: smaller.get(source, source))
            if _gathers(node):
                arguments = (call_like(graph, _SELECT, (arguments[0], 0, rows)), *arguments[1:])
            smaller[node] = call_like(graph, node.target, arguments, dict(node.kwargs))
        added = [None if each is None else call_like(graph, _SELECT, (each, 0, rows)) for each in beside]
        total = call_like(graph, combine.target, (smaller[y], chosen, smaller[order], *added, multiplier, weighted))
    _put_in_place(graph, combine, total)
    return len(between) + 1


def _between(y: Any, order: Any) -> list[fx.Node]:
    """What computes the rows of experts, `order` first, each after what it reads."""
    found: dict[fx.Node, None] = {order: None}

    def visit(node: fx.Node) -> None:
        if node in found or node.op != "call_function":
            return
        if not _gathers(node):
            for source in node.all_input_nodes:
                visit(source)
        found[node] = None

    visit(y)
    return list(found)


def _gathers(node: fx.Node) -> bool:
    """Whether its first argument has the rows of tokens, and its result those of pairs."""
    gathers = (torch.ops.engine.gather_rows.default, torch.ops.engine.weigh_rows.default)
    return node.target in gathers or (node.target in _row_experts() and node.args[-1] is True)


def _row_experts() -> set[Any]:
    return {getattr(torch.ops.engine, f"experts_{kernel}").default for kernel in (*ROW_KERNELS, *FP8_KERNELS)}


def _put_in_place(graph: fx.Graph, node: fx.Node, smaller: fx.Node) -> None:
    """What is selected of `node` is `smaller` as a whole."""
    for user in list(node.users):
        user.replace_all_uses_with(smaller)
        graph.erase_node(user)
    erase_unused(graph, node)


def _bring_before(node: fx.Node, rows: fx.Node) -> None:
    """Move what computes `rows`, which hangs on the step's inputs alone, in front of `node`."""
    if rows.op == "call_function":
        for source in rows.all_input_nodes:
            _bring_before(node, source)
        node.prepend(rows)

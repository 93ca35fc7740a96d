"""Stage 4: cut the graph at operators that look at other rows, and name every distinct piece once.

    embed, norm, qkv | attention | o, mlp, norm, qkv | attention | ... | o, mlp, norm, head

Attention writes the KV cache, so it stays a call of its own: segments are then pure functions,
which Inductor compiles without copies, and equal layers become calls of one segment.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import fx

from ..artifacts import Call, InputInfo, Program
from ..artifacts.manifest import LOGITS
from ..errors import BuildError
from ..kernels import cut_operators
from . import segment_graph
from .segment_graph import Form

CUT_OPERATORS = {f"{target}.default": operator for target, operator in cut_operators.CUT_OPERATORS.items()}
"""By the name of a node's target."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of nodes between two cuts, with what flows in and out, in order of first use."""

    nodes: list[fx.Node]
    inputs: list[fx.Node]
    outputs: list[fx.Node]


@dataclass(frozen=True, kw_only=True)
class Partition:
    """The step as calls. `forms` holds each distinct segment by its canonical text; the calls of
    kind "segment" name their segment by that text until lowering gives it a key. results: as in `Program`."""

    inputs: list[InputInfo]
    calls: list[Call]
    forms: dict[str, Form]
    results: dict[str, str]

    def program(self, keys: dict[str, str]) -> Program:
        """The program, with segments named by key. keys: canonical text -> key."""
        calls = [msgspec.structs.replace(call, target=keys[call.target]) if call.kind == "segment" else call for call in self.calls]
        return Program(inputs=self.inputs, calls=calls, results=self.results)


def partition(
    graph: fx.Graph, inputs: list[InputInfo], *, results: Sequence[str] = (LOGITS,), cuts_are_segments: bool = False
) -> Partition:
    """Cut `graph` at CUT_OPERATORS. Raises BuildError for a graph that cannot be cut there.

    inputs: the step's, of which the graph's placeholders are some. results: what its outputs are called.
    cuts_are_segments: whether the operators at the cuts are compiled like what is between them.
    """
    if not cuts_are_segments:
        _take_views_along(graph)
    (output,) = graph.find_nodes(op="output")
    names: dict[fx.Node, str] = {node: node.meta["ref"] for node in graph.find_nodes(op="placeholder")}
    calls: list[Call] = []
    forms: dict[str, Form] = {}
    for step in _cut(graph):
        if isinstance(step, fx.Node):
            if not cuts_are_segments:
                calls.append(_operator_call(step, names))
                continue
            step = Piece(nodes=[step], inputs=list(dict.fromkeys(step.all_input_nodes)), outputs=[step])
        form = segment_graph.encode(step.inputs, step.nodes, step.outputs, strided=cuts_are_segments)
        text = segment_graph.text(form)
        forms[text] = form
        given = [names[node] for node in step.inputs]
        calls.append(Call(kind="segment", target=text, inputs=given, outputs=_name_outputs(step.outputs, names)))
    (outputs,) = output.args
    values: list[Any] = [outputs] if isinstance(outputs, fx.Node) else list(outputs)
    named = {result: names[value] for result, value in zip(results, values, strict=True)}
    return Partition(inputs=inputs, calls=_with_frees(calls, named.values()), forms=forms, results=named)


def _take_views_along(graph: fx.Graph) -> None:
    """Where a segment would be given some columns of a matrix, as of a gate that was computed with q, k and v, it is given the matrix, and
    takes the columns itself: segments read whole tensors, and a view costs nothing."""
    group = 0
    groups: dict[fx.Node, int] = {}
    taken: dict[tuple[fx.Node, int], fx.Node] = {}
    for node in list(graph.nodes):
        is_cut = str(node.target) in CUT_OPERATORS
        group += is_cut
        groups[node] = group
        if is_cut or node.op != "call_function":
            group += is_cut
            continue
        for source in node.all_input_nodes:
            if groups[source] < group and _is_part(source):
                with graph.inserting_before(node):
                    node.replace_input_with(source, _taken_along(graph, source, group, taken))


def _is_part(node: fx.Node) -> bool:
    """Whether it is a view that does not lie in one piece."""
    value = node.meta.get("val")
    is_view = node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and node.target.is_view
    return is_view and isinstance(value, torch.Tensor) and not value.is_contiguous()


def _taken_along(graph: fx.Graph, node: fx.Node, group: int, taken: dict[tuple[fx.Node, int], fx.Node]) -> fx.Node:
    """The same view, in that group of nodes, at the graph's insertion point where it is not there yet."""
    if (node, group) not in taken:
        arguments = fx.map_arg(node.args, lambda source: _taken_along(graph, source, group, taken) if _is_part(source) else source)
        taken[node, group] = graph.create_node("call_function", node.target, arguments, dict(node.kwargs))
        taken[node, group].meta = dict(node.meta)
    return taken[node, group]


def _cut(graph: fx.Graph) -> list[Piece | fx.Node]:
    groups: list[list[fx.Node]] = [[]]
    cuts: list[fx.Node] = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if str(node.target) in CUT_OPERATORS:
            cuts.append(node)
            groups.append([])
        else:
            groups[-1].append(node)
    steps: list[Piece | fx.Node] = []
    for index, group in enumerate(groups):
        if group:
            steps.append(_piece(group))
        steps.extend(cuts[index : index + 1])
    return steps


def _piece(nodes: list[fx.Node]) -> Piece:
    inside = set(nodes)
    inputs = list(dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in inside))
    outputs = [node for node in nodes if any(user not in inside for user in node.users)]
    for node in outputs:
        if not isinstance(node.meta["val"], torch.Tensor):
            raise BuildError(f"{node.name} crosses a cut but is not a tensor")
    return Piece(nodes=nodes, inputs=inputs, outputs=outputs)


def _name_outputs(outputs: list[fx.Node], names: dict[fx.Node, str]) -> list[str]:
    count = sum(name.startswith("value:") for name in names.values())
    for index, node in enumerate(outputs):
        names[node] = f"value:{count + index}"
    return [names[node] for node in outputs]


def _operator_call(node: fx.Node, names: dict[fx.Node, str]) -> Call:
    operator = CUT_OPERATORS[str(node.target)]
    tensors = node.args[: operator.tensor_count]
    scalars = [arg for arg in node.args[operator.tensor_count :] if isinstance(arg, (float, int))]
    if len(tensors) + len(operator.scalars) != len(node.args) or len(scalars) != len(operator.scalars) or node.kwargs:
        raise BuildError(f"{node.target} must be called with all of its arguments by position, its scalars as numbers")
    return Call(
        kind="operator",
        target=str(node.target).removesuffix(".default"),
        inputs=[names[tensor] if isinstance(tensor, fx.Node) else "" for tensor in tensors],
        outputs=_name_outputs([node], names),
        scalars=[int(scalar) if isinstance(scalar, bool) else scalar for scalar in scalars],
    )


def _with_frees(calls: list[Call], results: Collection[str]) -> list[Call]:
    last_use = {name: index for index, call in enumerate(calls) for name in (*call.outputs, *call.inputs)}
    freed: list[list[str]] = [[] for _ in calls]
    for name, index in last_use.items():
        if name.startswith("value:") and name not in results:
            freed[index].append(name)
    return [msgspec.structs.replace(call, frees=frees) for call, frees in zip(calls, freed, strict=True)]

"""Activations in bfloat16: for targets that multiply it, and hold the sums in float32.

    x = embedding_rows_*(tokens, w)               float32  ->  bfloat16, and so everything that is computed from it
    logits = linear_rows_*(x, w, ...)                      ->  engine.logits_rows_*(x, w, ...), float32: of tokens, and of routers
    linear_rows_*(x, w, ...), x still float32              ->  linear_rows_*(x.to(bfloat16), w, ...)

Why: half the bytes between operators, and the only kind of operand that tensor cores take at
full rate. Norm weights, biases and angles stay float32: they are small, and rounding them would
cost accuracy for nothing.

When not: on targets whose operators are float32 (CPUs). This pass changes numerics: values are
rounded to 8 bits where they go from operator to operator, as every engine on such hardware does.
"""

from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ..kernels.formats import FP8_FORMATS, FP8_KERNELS, ROW_KERNELS
from ..kernels.row_operators import ROW_OPERATORS, TWINS, twin
from .linears import is_linear

_TO = torch.ops.aten.to.dtype


def lower_precision(graph: fx.Graph) -> int:
    """Give every value of `graph` the dtype that its operator has on the target; returns how many changed."""
    (output,) = graph.find_nodes(op="output")
    _keep_logits(graph, _head(output.args[0]))
    for route in graph.find_nodes(op="call_function", target=torch.ops.engine.route.default):
        _keep_logits(graph, route.args[0])
    fake_mode = next(node.meta["val"].fake_mode for node in graph.find_nodes(op="placeholder") if isinstance(node.meta["val"], FakeTensor))
    activations = _activations()
    changed = 0
    for node in graph.nodes:
        if node.op == "call_function":
            for position in activations.get(node.target, ()):
                _round(graph, node, position, fake_mode)
            changed += _infer(node, fake_mode)
    return changed


def _activations() -> dict[Any, tuple[int, ...]]:
    """Which arguments of our operators are activations."""
    found: dict[str, tuple[int, ...]] = {row.name: row.rows for row in TWINS} | dict.fromkeys(("attention", "latent_attention"), (0, 1, 2))
    found |= {"combine_experts": (0, 3, 4, 5), "weigh_rows": (0,)}
    for kernel in (*ROW_KERNELS, *FP8_KERNELS):
        found |= dict.fromkeys((f"linear_{kernel}", f"logits_{kernel}"), (0, 3)) | {f"experts_{kernel}": (0,)}
    for format in FP8_FORMATS:
        quantizer = f"quantize_{format}"
        found |= {quantizer: (0,)} | {twin(row.name, quantizer): row.rows for row in TWINS}
    return {getattr(torch.ops.engine, name).default: positions for name, positions in found.items()}


def _round(graph: fx.Graph, node: fx.Node, position: int, fake_mode: FakeTensorMode) -> None:
    """An activation that something else than our operators made may be float32 still."""
    source = node.args[position]
    if not isinstance(source, fx.Node) or source.meta["val"].dtype != torch.float32:
        return
    with graph.inserting_before(node):
        rounded = graph.call_function(_TO, (source, torch.bfloat16))
    _infer(rounded, fake_mode)
    node.update_arg(position, rounded)


def _head(result: Any) -> fx.Node:
    """What computes the logits, behind row operators that leave them float32."""
    of_logits = {getattr(torch.ops.engine, name).default: row.rows[0] for name, row in ROW_OPERATORS.items() if row.logits}
    while result.target in of_logits:
        result = result.args[of_logits[result.target]]
    return result  # type: ignore[no-any-return]


def _keep_logits(graph: fx.Graph, head: fx.Node) -> None:
    if not is_linear(head):
        return
    name = str(head.target).removeprefix("engine.linear_").removesuffix(".default")
    with graph.inserting_before(head):
        logits = graph.call_function(getattr(torch.ops.engine, f"logits_{name}").default, head.args)
    logits.meta = dict(head.meta)
    head.replace_all_uses_with(logits)
    graph.erase_node(head)


def _infer(node: fx.Node, fake_mode: FakeTensorMode) -> bool:
    before = node.meta.get("val")
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    with fake_mode:
        node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]
    return isinstance(before, torch.Tensor) and bool(before.dtype != node.meta["val"].dtype)

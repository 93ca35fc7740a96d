"""Activations in bfloat16: for targets that multiply it, and hold the sums in float32.

    x = embedding_rows_*(tokens, w)               float32  ->  bfloat16, and so everything that is computed from it
    logits = linear_rows_*(x, w, ...)                      ->  engine.logits_rows_*(x, w, ...), float32
    linear_rows_*(rms_norm(x, weight))                     ->  as before, in bfloat16

Why: half the bytes between operators, and the only kind of operand that tensor cores take at
full rate. Norm weights, biases and angles stay float32: they are small, and rounding them would
cost accuracy for nothing.

When not: on targets whose operators are float32 (CPUs). This pass changes numerics: values are
rounded to 8 bits where they go from operator to operator, as every engine on such hardware does.
"""

from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from .linears import is_linear


def lower_precision(graph: fx.Graph) -> int:
    """Give every value of `graph` the dtype that its operator has on the target; returns how many changed."""
    (output,) = graph.find_nodes(op="output")
    _keep_logits(graph, output.args[0])
    return sum(_infer(node) for node in graph.nodes if node.op == "call_function")


def _keep_logits(graph: fx.Graph, head: fx.Node) -> None:
    if not is_linear(head):
        return
    name = str(head.target).removeprefix("engine.linear_").removesuffix(".default")
    with graph.inserting_before(head):
        logits = graph.call_function(getattr(torch.ops.engine, f"logits_{name}").default, head.args)
    logits.meta = dict(head.meta)
    head.replace_all_uses_with(logits)
    graph.erase_node(head)


def _infer(node: fx.Node) -> bool:
    before = node.meta["val"]
    values: list[Any] = [source.meta["val"] for source in node.all_input_nodes]
    fake_mode = next(value.fake_mode for value in values if isinstance(value, FakeTensor))
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    with fake_mode:
        node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]
    return isinstance(before, torch.Tensor) and bool(before.dtype != node.meta["val"].dtype)

"""Gives every weight matrix its packed format and the operator that reads it.

    linear(x, w, bias)      ->  engine.linear_q4_1(engine.quantize(x), w_packed, bias, None, out_features, 1.0)
                                engine.linear_dense(x, w_packed, bias, None, out_features, 1.0)
                                engine.linear_w4_g128(engine.quantize(index_select(x, 1, order)), ...)    (act-order)
                                engine.linear_bf16(engine.round_bf16(x), w_packed, bias, None, out_features, 1.0)
                                engine.linear_rows_q4_1(x, w_packed, bias, None, out_features, 1.0)    (layout "rows")
                                engine.linear_rows_fp8_channel(engine.quantize_fp8_tensor(x, input_scale), ...)    (fp8_tensor)
    experts_linear(gather_rows(x, ...), w, bias, order, experts)
                            ->  engine.experts_mixed(gather_rows(engine.quantize(x), ...), w_packed, bias, order, "q4_1:F", experts)
    embedding(w, tokens)    ->  engine.embedding_q4_1(tokens, w_packed, dim, 1.0)

Why: library matrix products change their summation order with the number of rows, so that a
token's logits would depend on what it was batched with; our kernels have one order. They also
read quantized blocks directly, which is what decode speed is made of. Activations that several
linears read are quantized once: on CPUs to int8, or rounded to bfloat16 for weights in that, to FP8 for
NVIDIA's fp8 formats; NVIDIA's other kernels take them as they are. A weight in fp8_tensor brings the scale of its activations, a new
placeholder beside it. Linears that read the same activations share the largest of theirs: where
they are equal, as they mostly are, nothing changes, and elsewhere nothing saturates that would not
have. Weights keep their own scales. A weight in act-order has its columns sorted by group; its order is a new placeholder as well, by
which the activations are gathered, once for all linears that share it.

When not: a weight used by anything but linears and embeddings stays as it is, and a matrix
that is used both ways with a plain operator in between is an error, never a silent copy.

This pass changes numerics only through the format that it is given: "f32" is exact.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from ..errors import BuildError
from ..kernels.formats import FLOAT_KERNELS, QUANTIZERS
from ..kernels.linear.bands import Band, write_bands
from ..kernels.linear.packed import ORDER, Layout, kernel_of, order_of, packed_dtype, packed_shape, quantizer_of
from ..kernels.nvidia.packed_rows import FP8_STATIC, input_scale_name
from .rewrite import call_like, join

_LINEAR = torch.ops.aten.linear.default
_EMBEDDING = torch.ops.aten.embedding.default
_engine = torch.ops.engine
_SELECT = torch.ops.aten.index_select.default


def assign_weight_kernels(graph: fx.Graph, *, formats: Mapping[str, str], layout: Layout = "panels") -> int:
    """Rewrite every linear and embedding whose weight is in `formats` (weight name -> format; orders are in it, too).

    Packed weights get meta["format"] and meta["layout"], and meta["val"] becomes a fake tensor of the packed shape.
    Returns the number of operators rewritten. Raises BuildError for a matrix with mixed uses.
    """
    rewritten = 0
    orders: dict[str, fx.Node] = {}
    for weight in graph.find_nodes(op="placeholder"):
        users = list(weight.users)
        as_matrix = [_reads_as_matrix(user, weight) for user in users]
        if not any(as_matrix):
            continue
        name = weight.meta["ref"].removeprefix("weight:")
        if not all(as_matrix):
            raise BuildError(f"the weight {name} is used both as a matrix of a linear or embedding and in another way")
        scale = _input_scale(graph, weight, name) if formats[name] == FP8_STATIC else None
        order = _order(graph, weight, found, orders) if (found := order_of(name, formats)) is not None else None
        for user in users:
            _rewrite(graph, user, formats[name], layout, scale, order)
            rewritten += 1
        _pack_placeholder(weight, formats[name], layout)
    _share(graph, _SELECT)
    _share_quantized(graph)
    _share(graph, _engine.gather_rows.default)
    graph.eliminate_dead_code()
    return rewritten


def _reads_as_matrix(user: fx.Node, weight: fx.Node) -> bool:
    return (user.target in (_LINEAR, _engine.experts_linear.default) and user.args[1] is weight) or (
        user.target is _EMBEDDING and user.args[0] is weight
    )


def _input_scale(graph: fx.Graph, weight: fx.Node, name: str) -> fx.Node:
    with graph.inserting_before(weight):
        scale = graph.placeholder(f"{weight.name}_input_scale")
    with weight.meta["val"].fake_mode:
        scale.meta = {"ref": f"weight:{input_scale_name(name)}", "val": torch.empty(1)}
    return scale


def _order(graph: fx.Graph, weight: fx.Node, name: str, known: dict[str, fx.Node]) -> fx.Node:
    """The placeholder of an order, made where there is none yet."""
    if name not in known:
        with graph.inserting_before(weight):
            known[name] = graph.placeholder(f"{weight.name}_{ORDER}")
        value = weight.meta["val"]
        with value.fake_mode:
            known[name].meta = {"ref": f"weight:{name}", "val": torch.empty(value.shape[1], dtype=torch.int32), "format": ORDER}
    return known[name]


def _rewrite(graph: fx.Graph, node: fx.Node, format: str, layout: Layout, scale: fx.Node | None, order: fx.Node | None) -> None:
    if node.target is _engine.experts_linear.default:
        _rewrite_experts(graph, node, format, layout)
        return
    kernel = kernel_of(format, layout)
    with graph.inserting_before(node):
        if node.target is _LINEAR:
            x, weight, bias = (*node.args, None)[:3]
            if order is not None:
                x = call_like(graph, _SELECT, (x, 1, order))
            if (quantizer := quantizer_of(format, layout)) is not None:
                x = call_like(graph, getattr(torch.ops.engine, quantizer).default, (x,) if scale is None else (x, scale))
            target, args = f"linear_{kernel}", (x, weight, bias, None, weight.meta["val"].shape[0], 1.0)  # type: ignore[union-attr]
        else:
            weight, tokens = node.args[:2]
            target, args = f"embedding_{kernel}", (tokens, weight, weight.meta["val"].shape[1], 1.0)  # type: ignore[union-attr,assignment]
        replacement = graph.call_function(getattr(getattr(torch.ops.engine, target), "default"), args)  # noqa: B009
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    graph.erase_node(node)


def _rewrite_experts(graph: fx.Graph, node: fx.Node, format: str, layout: Layout) -> None:
    """What the rows of several pairs have in common is quantized once, before it is gathered."""
    arguments: Any = node.args
    x, weight, bias, order, experts = arguments
    out_features = int(weight.meta["val"].shape[0]) // experts
    kernel, size, more = _experts_kernel(format, layout, out_features, x)
    with graph.inserting_before(node):
        gathered = x.args[1:] if x.target is _engine.gather_rows.default else None
        if gathered is not None:
            x = x.args[0]
        if (quantizer := quantizer_of(format, layout)) is not None:
            x = call_like(graph, getattr(torch.ops.engine, quantizer).default, (x,))
        if gathered is not None and layout == "panels":
            x = call_like(graph, _engine.gather_rows.default, (x, *gathered))
        target = getattr(torch.ops.engine, f"experts_{kernel}").default
        replacement = graph.call_function(target, (x, weight, bias, order, size, experts, *more))
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    graph.erase_node(node)


def _experts_kernel(format: str, layout: Layout, out_features: int, x: fx.Node) -> tuple[str, int | str, tuple[Any, ...]]:
    """The kernel; its outputs, or bands of them; and what those of rows also take: one part, and whether they gather rows of x."""
    if layout == "rows":
        return kernel_of(format, layout), out_features, (1, x.target is _engine.gather_rows.default)
    if kernel_of(format) in FLOAT_KERNELS:
        return kernel_of(format), out_features, ()
    return "mixed", write_bands([Band(format, out_features)]), ()


def _pack_placeholder(weight: fx.Node, format: str, layout: Layout) -> None:
    value = weight.meta["val"]
    out_features, in_features = value.shape
    with value.fake_mode:
        weight.meta["val"] = torch.empty(packed_shape(format, out_features, in_features, layout), dtype=packed_dtype(format))
    weight.meta |= {"format": format, "layout": layout}


def _share(graph: fx.Graph, gather: Any) -> None:
    """Calls of an operator that gathers, where arguments are equal."""
    first: dict[Any, fx.Node] = {}
    for node in graph.find_nodes(op="call_function", target=gather):
        same = first.setdefault(node.args, node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def _share_quantized(graph: fx.Graph) -> None:
    equal: dict[Any, list[fx.Node]] = defaultdict(list)
    quantizers = {getattr(torch.ops.engine, name).default for name in QUANTIZERS.values()}
    for node in graph.nodes:
        if node.target in quantizers:
            equal[node.args[0], node.target].append(node)
    for first, *others in equal.values():
        scales = list(dict.fromkeys(node.args[1] for node in (first, *others) if len(node.args) > 1))
        if len(scales) > 1:
            first.update_arg(1, join(graph, scales, "max"))  # type: ignore[arg-type]
        for node in others:
            node.replace_all_uses_with(first)
            graph.erase_node(node)

"""Linears that read the same activations become one.

    q = linear(x, w_q), k = linear(x, w_k), v = linear(x, w_v)
                ->  qkv = linear(x, w_q|w_k|w_v); q, k, v = qkv[:, :a], qkv[:, a:b], qkv[:, b:]
                ->  qkv = linear_mixed(x, w_q|w_k|w_v, "q4_k:a+q4_k:b+q6_k:c"); likewise
    gate = experts_mixed(x, w_gate, None, order, "q4_k:F", E), up = experts_mixed(x, w_up, None, order, "q4_k:F", E)
                ->  experts_mixed(x, w_gate|w_up, None, order, "q4_k:F+q4_k:F", E); likewise
    gate = experts_rows_*(x, w_gate, None, order, F, E, 1, True), up = experts_rows_*(x, w_up, None, order, F, E, 1, True)
                ->  experts_rows_*(x, w_gate|w_up, None, order, 2 * F, E, 2, True); likewise

Why: one call instead of two or three, each of which starts and ends the threads' common work;
and longer runs of weights to stream. The slices are views, which cost nothing.

When not: when multipliers differ, or a weight is used twice (a tied embedding). Where linears differ in format (a GGUF
file may keep some matrices at more bits) or do not fill whole panels, those of quantized formats on CPUs become bands of a
mixed one (kernels/linear/bands.py); others stay apart. Numerics do not change: every output is computed as before.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import fx

from ..kernels.formats import FP8_KERNELS, PANEL_QUANTIZERS, ROW_KERNELS
from ..kernels.linear.bands import Band, read_bands, write_bands
from ..kernels.linear.formats import PANEL
from .linears import is_linear, linear_arguments
from .rewrite import call_like, join, only_user

_SLICE = torch.ops.aten.slice.Tensor


def merge_sibling_linears(graph: fx.Graph) -> int:
    """Merge siblings everywhere in `graph`; returns how many linears disappeared.

    The merged weight is a new placeholder whose meta["parts"] names the weights it is made of.
    """
    families: dict[Any, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if is_linear(node) and _is_simple(node):
            families[_family(node)].append(node)
    merged = sum(_merge(graph, siblings) for siblings in families.values() if len(siblings) > 1)
    return merged + _merge_experts(graph) + sum(_merge_parts(graph, f"experts_{kernel}") for kernel in (*ROW_KERNELS, *FP8_KERNELS))


def _is_simple(node: fx.Node) -> bool:
    _, weight, bias, residual, *_ = linear_arguments(node)
    weights = [weight] if bias is None else [weight, bias]
    return residual is None and all(weight.op == "placeholder" and only_user(weight) is node for weight in weights)


def _family(node: fx.Node) -> Any:
    linear = linear_arguments(node)
    return linear.x, _can_be_band(linear.weight) or linear.weight.meta["format"], linear.bias is None, linear.multiplier


def _can_be_band(weight: fx.Node) -> bool:
    """On CPUs, in blocks: those read the same activations, whatever their formats."""
    return weight.meta["layout"] == "panels" and PANEL_QUANTIZERS.get(weight.meta["format"]) == "quantize"


def _merge(graph: fx.Graph, siblings: list[fx.Node]) -> int:
    linears = [linear_arguments(node) for node in siblings]
    bands = [Band(linear.weight.meta["format"], int(linear.out_features)) for linear in linears]
    weights = [linear.weight for linear in linears]
    if len({band.format for band in bands}) == 1 and all(band.out_features % PANEL == 0 for band in bands[:-1]):
        target, out_features = siblings[0].target, sum(band.out_features for band in bands)
        arguments = linears[0]._replace(weight=join(graph, weights, "concat"), out_features=out_features)
    elif _can_be_band(weights[0]):
        target, text = torch.ops.engine.linear_mixed.default, write_bands(bands)
        arguments = linears[0]._replace(weight=join(graph, weights, "concat_flat"), out_features=text)
        arguments.weight.meta["format"] = text
    else:
        return 0
    if biases := [linear.bias for linear in linears if linear.bias is not None]:
        arguments = arguments._replace(bias=join(graph, biases, "concat"))
    with graph.inserting_before(siblings[0]):
        merged = call_like(graph, target, tuple(arguments))
        _take_apart(graph, merged, siblings, bands)
    return len(siblings) - 1


def _take_apart(graph: fx.Graph, merged: fx.Node, siblings: list[fx.Node], bands: list[Band]) -> None:
    """Put each sibling's columns of the merged result, which are those of its band, in its place."""
    start = 0
    for node, band in zip(siblings, bands, strict=True):
        node.replace_all_uses_with(call_like(graph, _SLICE, (merged, 1, start, start + band.out_features)))
        start += band.out_features
    for node in siblings:
        graph.erase_node(node)


def _merge_experts(graph: fx.Graph) -> int:
    families: dict[Any, list[fx.Node]] = defaultdict(list)
    for node in graph.find_nodes(op="call_function", target=torch.ops.engine.experts_mixed.default):
        x, weight, bias, order, _, experts = node.args
        if all(each is None or only_user(each) is node for each in (weight, bias)):
            families[x, order, experts, bias is None].append(node)
    merged = [siblings for siblings in families.values() if len(siblings) > 1]
    for siblings in merged:
        _merge_bands_of_experts(graph, siblings)
    return sum(len(siblings) - 1 for siblings in merged)


def _merge_bands_of_experts(graph: fx.Graph, siblings: list[fx.Node]) -> None:
    arguments: list[Any] = [node.args for node in siblings]
    x, _, _, order, _, experts = arguments[0]
    bands = [band for _, _, _, _, text, _ in arguments for band in read_bands(text)]
    weight = join(graph, [each[1] for each in arguments], "concat_flat")
    weight.meta["format"] = write_bands([Band(band.format, band.out_features * experts) for band in bands])
    bias = None if arguments[0][2] is None else join(graph, [each[2] for each in arguments], "concat")
    with graph.inserting_before(siblings[0]):
        call = call_like(graph, torch.ops.engine.experts_mixed.default, (x, weight, bias, order, write_bands(bands), experts))
        _take_apart(graph, call, siblings, bands)


def _merge_parts(graph: fx.Graph, name: str) -> int:
    """Grouped linears of rows, of as many outputs: parts of one (see the schema)."""
    families: dict[Any, list[fx.Node]] = defaultdict(list)
    for node in graph.find_nodes(op="call_function", target=getattr(torch.ops.engine, name).default):
        x, weight, bias, *others = node.args
        if all(each is None or only_user(each) is node for each in (weight, bias)):
            families[x, bias is None, *others].append(node)
    merged = [siblings for siblings in families.values() if len(siblings) > 1]
    for siblings in merged:
        arguments: list[Any] = [node.args for node in siblings]
        x, _, bias, order, out_features, experts, _, gather = arguments[0]
        weight = join(graph, [each[1] for each in arguments], "concat")
        bias = None if bias is None else join(graph, [each[2] for each in arguments], "concat")
        size, bands = len(siblings), [Band(weight.meta["format"], out_features)] * len(siblings)
        with graph.inserting_before(siblings[0]):
            together = (x, weight, bias, order, size * out_features, experts, size, gather)
            _take_apart(graph, call_like(graph, siblings[0].target, together), siblings, bands)
    return sum(len(siblings) - 1 for siblings in merged)

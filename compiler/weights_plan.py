"""Which packed tensors the artifact holds, and the recipe that makes each from checkpoint tensors.

A recipe is pure data (operations named in the manifest), so new weights of the same
architecture need packing but no compiling. `recipes.py` runs them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..artifacts import ExpertsInfo
from ..kernels.linear.bands import is_mixed, read_bands
from ..kernels.linear.blocks import FORMATS, GROUPED
from ..kernels.linear.packed import ORDER, Layout
from ..kernels.moe.options import RouteOptions
from ..kernels.nvidia.packed_rows import fp8_layout

_CONVERSIONS = {"f32": "to_float32", "bf16": "to_bfloat16"}


@dataclass(frozen=True, kw_only=True)
class PackedWeight:
    """One tensor of the artifact. `sources`: names of the parameters that it is made from. experts: as in `WeightInfo`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    format: str
    sources: tuple[str, ...]
    recipe: tuple[str, ...]
    experts: ExpertsInfo | None = None


def plan_weights(graph: fx.Graph, stored: Mapping[str, str]) -> list[PackedWeight]:
    """The packed weights that `graph` reads, in the order of its placeholders. stored: the checkpoint's format of every parameter."""
    plan = []
    for node in graph.find_nodes(op="placeholder"):
        ref: str = node.meta["ref"]
        if ref.startswith("weight:") and node.users:
            name = ref.removeprefix("weight:")
            value = node.meta["val"]
            packed_format = node.meta.get("format")
            sources = tuple(node.meta.get("parts", (name,)))
            plan.append(
                PackedWeight(
                    name=name,
                    dtype=str(value.dtype).removeprefix("torch."),
                    shape=tuple(value.shape),
                    format=packed_format or "f32",
                    sources=sources,
                    recipe=_recipe(
                        [stored.get(source, "f32") for source in sources], packed_format, node.meta.get("layout"), node.meta.get("join")
                    ),
                    experts=_experts(node),
                )
            )
    return plan


def _experts(weight: fx.Node) -> ExpertsInfo | None:
    """The mixture of which `weight` holds every expert's part: where all that reads it takes rows in the order of a router's choice."""
    sorts = torch.ops.engine.sort_routes.default
    orders = [next((source for source in user.all_input_nodes if source.target is sorts), None) for user in weight.users]
    if (order := orders[0]) is None or None in orders:
        return None
    arguments: Any = order.args
    routes, count = arguments
    shared = _options(routes).shared
    return ExpertsInfo(count=count - shared, chosen=routes.meta["val"].shape[2] - shared, shared=shared)


def _options(routes: fx.Node) -> RouteOptions:
    """Those of the router, of whose choices some rows may have been picked."""
    while routes.target is not torch.ops.engine.route.default:
        (routes, *_) = routes.all_input_nodes
    return RouteOptions.of(routes.args[3:])


def operations_of(recipe: Sequence[str], index: int) -> list[str]:
    """What is done to one of the sources: where they are of bands, `quantize` names the format of each, with + between them."""
    operations = [operation.partition(":") for operation in recipe]
    return [f"{name}{colon}{formats.split('+')[index] if is_mixed(formats) else formats}" for name, colon, formats in operations]


def _recipe(stored: Sequence[str], packed_format: str | None, layout: Layout | None, join: str | None) -> tuple[str, ...]:
    if packed_format == ORDER:
        return ()
    joined = () if join is None else (join,)
    if packed_format is None:
        return (() if set(stored) == {"f32"} else ("to_float32",)) + joined
    bands = formats_of_sources(packed_format, len(stored)) if is_mixed(packed_format) else []
    wanted = bands or [packed_format] * len(stored)
    is_there = [fp8_layout(format) for format in stored] == [fp8_layout(format) for format in wanted]
    operation = "in_groups" if packed_format in GROUPED else "quantize"
    convert = () if is_there else (_CONVERSIONS.get(packed_format, f"{operation}:{'+'.join(bands) or packed_format}"),)
    pack = ("pack",) if layout == "panels" else ("pack_rows",) if packed_format in FORMATS else ()
    return (*convert, *pack, *joined)


def formats_of_sources(packed_format: str, sources: int) -> list[str]:
    """The format of each of the sources of a weight. A band may be made of several."""
    formats = [band.format for band in read_bands(packed_format)] if is_mixed(packed_format) else [packed_format]
    return [format for format in formats for _ in range(sources // len(formats))]

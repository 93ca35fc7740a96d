"""Which packed tensors the artifact holds, and the recipe that makes each from checkpoint tensors.

A recipe is pure data (operations named in the manifest), so new weights of the same
architecture need packing but no compiling.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import fx

from ..errors import ArtifactError, UsageError
from ..kernels import ops
from ..kernels.linear.blocks import FORMATS, GROUP
from ..kernels.linear.formats import pack_blocks, pack_dense, unpack
from ..kernels.linear.packed import DENSE_DTYPES, Layout
from ..kernels.linear.quantize import quantize as quantize_blocks
from ..kernels.nvidia import formats as rows
from ..kernels.nvidia import fp8
from ..kernels.nvidia.packed_rows import ALIGNMENT, FP8_GROUP, fp8_in_features, fp8_layout
from ..models.checkpoint import Checkpoint
from ..models.decoder import Decoder

_MATRIX_FORMAT: dict[str, str] = {"int8": "q8_0", "int4": "q4_1", "fp8": "fp8_channel", "fp8-block": "fp8_block"}
_TABLE_FORMAT: dict[str, str] = {"int8": "q8_0", "int4": "q8_0", "fp8": "bf16", "fp8-block": "bf16"}
_CONVERSIONS = {"f32": "to_float32", "bf16": "to_bfloat16"}
_TABLES = frozenset({"embed.weight", "head.weight"})
"""Embedding and LM head stay at 8 bits under int4, and at 16 under FP8: fewer there cost the most accuracy of all."""


@dataclass(frozen=True, kw_only=True)
class PackedWeight:
    """One tensor of the artifact. `sources`: names of the parameters that it is made from."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    format: str
    sources: tuple[str, ...]
    recipe: tuple[str, ...]


def choose_formats(checkpoint: Checkpoint, quantize: str, layout: Layout = "panels") -> dict[str, str]:
    """Storage format of every parameter, by name. In rows, matrices that are not quantized are bfloat16: what tensor cores multiply. In
    panels, FP8 ones are widened: no CPU multiplies them.

    Raises UsageError if `quantize` asks to quantize a checkpoint that is quantized already.
    """
    stored = {name: info.format for name, info in checkpoint.parameters.items()}
    if layout == "panels":
        stored |= {name: "f32" for name, format in stored.items() if format in ops.FP8_FORMATS}
    if layout == "rows":
        stored |= {n: "bf16" for n, info in checkpoint.parameters.items() if len(info.shape) == 2 and info.format in DENSE_DTYPES}
    if quantize == "none":
        return dict(stored)
    if _MATRIX_FORMAT[quantize] in ops.FP8_FORMATS:
        _check_fp8(checkpoint, quantize, layout)
    quantized = sorted(set(stored.values()) & set(ops.QUANTIZED_FORMATS))
    if quantized:
        raise UsageError(
            f"--quantize {quantize} on a checkpoint that is quantized already ({', '.join(quantized)})",
            hint="leave --quantize out: the blocks are carried over exactly; or start from an unquantized checkpoint",
        )
    table = {name: _TABLE_FORMAT[quantize] if name in _TABLES else _MATRIX_FORMAT[quantize] for name in stored}
    return {name: table[name] if len(info.shape) == 2 else info.format for name, info in checkpoint.parameters.items()}


def _check_fp8(checkpoint: Checkpoint, quantize: str, layout: Layout) -> None:
    if layout != "rows":
        raise UsageError(f"--quantize {quantize} is for NVIDIA targets: no CPU multiplies FP8", hint="add --target sm90, or take int8")
    multiple = FP8_GROUP if _MATRIX_FORMAT[quantize] == "fp8_block" else ALIGNMENT
    for name, info in checkpoint.parameters.items():
        if len(info.shape) == 2 and name not in _TABLES and info.shape[1] % multiple:
            raise UsageError(
                f"--quantize {quantize} needs rows of a multiple of {multiple}, and {name} is {list(info.shape)}",
                hint="take fp8, whose rows have one scale each" if multiple == FP8_GROUP else "take int8",
            )


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
                        {stored.get(source, "f32") for source in sources}, packed_format, node.meta.get("layout"), node.meta.get("join")
                    ),
                )
            )
    return plan


def _recipe(stored: set[str], packed_format: str | None, layout: Layout | None, join: str | None) -> tuple[str, ...]:
    joined = () if join is None else (join,)
    if packed_format is None:
        return (() if stored == {"f32"} else ("to_float32",)) + joined
    is_there = {fp8_layout(format) for format in stored} == {fp8_layout(packed_format)}
    convert = () if is_there else (_CONVERSIONS.get(packed_format, f"quantize:{packed_format}"),)
    pack = ("pack",) if layout == "panels" else ("pack_rows",) if packed_format in FORMATS else ()
    return (*convert, *pack, *joined)


def make(weight: PackedWeight, checkpoint: Checkpoint) -> torch.Tensor:
    """Run a recipe: reads the sources and returns the packed tensor, of the planned dtype and shape.

    Raises CheckpointError for a source that cannot be read, ArtifactError for an operation that does not exist.
    """
    parts = [_make_part(source, weight.recipe, checkpoint) for source in weight.sources]
    match weight.recipe[-1:]:
        case ("concat",):
            data = torch.cat(parts)
        case ("max",):
            data = torch.stack(parts).amax(0)
        case _:
            (data,) = parts
    assert tuple(data.shape) == weight.shape, (weight, data.shape)
    return data.contiguous()


def _make_part(source: str, recipe: tuple[str, ...], checkpoint: Checkpoint) -> torch.Tensor:
    constants = Decoder.constants(checkpoint.config) if source not in checkpoint.parameters else {}
    if source in constants:
        return constants[source].to(torch.float32).contiguous()
    loaded = checkpoint.read(source)
    data, held = loaded.data, loaded.format
    for operation in recipe:
        match operation.partition(":"):
            case "to_float32", _, _:
                data, held = dequantize(held, data), "f32"
            case "to_bfloat16", _, _:
                data, held = dequantize(held, data).bfloat16(), "bf16"
            case "quantize", _, wanted:
                quantize = partial(fp8.quantize_fp8 if wanted in ops.FP8_FORMATS else quantize_blocks, wanted)
                data, held = quantize(dequantize(held, data)), wanted  # type: ignore[assignment]
            case "pack_rows", _, _:
                data = rows.pack_rows(held, data)
            case "pack", _, _:
                data = pack_blocks(held, data) if held in ops.QUANTIZED_FORMATS else pack_dense(data)
            case "concat" | "max", _, _:
                pass  # of all parts, once each is made
            case _:
                raise ArtifactError(f"there is no recipe {operation!r} for weights in this version", hint="build the artifact again")
    return data


def dequantize(stored: str, data: torch.Tensor) -> torch.Tensor:
    """A stored tensor as float32 [N, K] (or its own shape when it is not a matrix); exact."""
    if stored in ops.FP8_FORMATS:
        return fp8.unpack_fp8(stored, data, fp8_in_features(stored, data.shape[1]))
    if stored not in ops.QUANTIZED_FORMATS:
        return data.to(torch.float32)
    return unpack(stored, pack_blocks(stored, data), data.shape[0], data.shape[1] // FORMATS[stored].block_bytes * GROUP)

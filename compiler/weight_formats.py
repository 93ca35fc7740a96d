"""How an artifact stores each parameter: as the checkpoint does, or quantized."""

import math
from collections import defaultdict
from collections.abc import Mapping

from ..errors import UsageError
from ..kernels.formats import FP8_FORMATS, QUANTIZED_FORMATS, ROW_FORMATS
from ..kernels.linear.blocks import FORMATS, GROUPED
from ..kernels.linear.packed import DENSE_DTYPES, Layout, order_name
from ..kernels.nvidia.packed_rows import ALIGNMENT, FP8_GROUP, FP8_STATIC, fp8_layout
from ..models.checkpoint import Checkpoint

_FORMATS = {
    "int8": ("q8_0", "q8_0", "q8_0"),
    "int6": ("i6_g32", "i6_g32", "q8_0"),
    "int5": ("i5_g32", "i6_g32", "i6_g32"),
    "int4": ("i4_g32", "i5_g32", "i6_g32"),
    "fp8": ("fp8_channel", "fp8_channel", "bf16"),
    "fp8-block": ("fp8_block", "fp8_block", "bf16"),
}
"""By what is asked for: the formats of most matrices, of sensitive ones, and of tables, where fewer bits cost the most accuracy of all."""
_HEADS = ("attention.key_up.weight", "attention.value_up.weight")
"""Matrices of heads: what makes keys and values of latents."""
_SENSITIVE = ("attention.v.weight", "attention.o.weight", "attention.latent.weight", *_HEADS, ".down.weight")
"""A bit more for a weight of these takes about twice as much off the divergence as one for any other (benchmarks/quality.py)."""
_ROUTERS = "router.weight"
"""These stay float32, whatever else is quantized: which experts are chosen is decided by small differences."""
_EXPERTS = ".experts."
_TABLES = frozenset({"embed.weight", "head.weight", "layer_inputs.embed.weight"})


def choose_formats(checkpoint: Checkpoint, quantize: str, layout: Layout = "panels") -> dict[str, str]:
    """Storage format of every parameter, by name. In rows, matrices are bfloat16, what tensor cores multiply, unless they are in a format
    that NVIDIA's kernels read. In panels, FP8 ones are widened: no CPU multiplies them. What has as few bits already as `quantize` asks
    for stays as it is. Orders of columns are those of the matrices that stay as they are.

    Raises UsageError if nothing is left to quantize, or not in that form.
    """
    parameters = checkpoint.parameters
    stored = {name: _kept(name, info.format, info.shape, layout) for name, info in parameters.items()}
    routers = {name for name in parameters if name.endswith(_ROUTERS)}
    stored |= dict.fromkeys(routers, "f32")
    if order_name("embed.weight") in stored:  # rows of a table are read whole
        stored["embed.weight"] = "f32" if layout == "panels" else "bf16"
    if quantize == "none":
        return _with_orders(checkpoint, stored)
    if quantize.startswith("fp8"):
        _check_fp8(checkpoint, quantize, layout)
    by_class = _FORMATS[quantize]
    wanted = {name: by_class[_sensitivity(name)] for name in parameters}
    matrices = {name: info for name, info in parameters.items() if len(info.shape) == 2 and name not in routers}
    narrowed = {name for name in matrices if _narrows(stored[name], wanted[name])}
    if not narrowed:
        found = ", ".join(sorted({*stored.values()} & {*QUANTIZED_FORMATS}))
        raise UsageError(
            f"--quantize {quantize} on a checkpoint that is quantized already ({found})",
            hint="leave --quantize out: the blocks are carried over exactly; or start from an unquantized checkpoint",
        )
    return _with_orders(checkpoint, {name: wanted[name] if name in narrowed else format for name, format in stored.items()})


def _with_orders(checkpoint: Checkpoint, formats: dict[str, str]) -> dict[str, str]:
    """The formats without the orders of matrices that become others."""
    parameters = checkpoint.parameters
    changed = {order_name(name) for name in formats if order_name(name) in formats and formats[name] != parameters[name].format}
    return {name: format for name, format in formats.items() if name not in changed}


def _sensitivity(name: str) -> int:
    """A column of _FORMATS."""
    return 2 if name in _TABLES else 1 if name.endswith(_SENSITIVE) else 0


def widened(checkpoint: Checkpoint, formats: Mapping[str, str]) -> str:
    """Which quantized parameters an artifact with these `formats` holds as numbers, in words; empty if none."""
    bytes_of = {"f32": 4, "f16": 2, "bf16": 2}
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name, info in checkpoint.parameters.items():
        stored = info.widened_from or (info.format.upper() if info.format not in DENSE_DTYPES else "")
        if stored and formats.get(name) in DENSE_DTYPES:
            found[stored, formats[name]].append(math.prod(info.shape) * bytes_of[formats[name]])
    parts = [f"{len(sizes)} of {stored} to {format}, {sum(sizes) / 1e6:.0f} MB" for (stored, format), sizes in sorted(found.items())]
    return f"{'; '.join(parts)} (exact, but large and slow: see --quantize)" if parts else ""


def _kept(name: str, format: str, shape: tuple[int, ...], layout: Layout) -> str:
    if layout == "panels" and (format != "w8a8" or (_EXPERTS not in name and not name.endswith(_HEADS))):
        return "f32" if format in FP8_FORMATS else format
    if format == FP8_STATIC and (_EXPERTS in name or name.endswith(_HEADS)):  # an expert's scale is not that of all
        return fp8_layout(format)
    if format == "w8a8":  # activations are not rounded here, and those of experts and heads by groups
        return next(grouped for grouped in GROUPED if shape[1] % FORMATS[grouped].block == 0)
    return "bf16" if len(shape) == 2 and format not in (*ROW_FORMATS, *FP8_FORMATS) else format


def _narrows(stored: str, wanted: str) -> bool:
    """Whether blocks of `wanted` have fewer bits. What is in no blocks always counts: FP8 too, which is scaled anew."""
    return stored not in FORMATS or (wanted in FORMATS and FORMATS[stored].bits > FORMATS[wanted].bits)


def _check_fp8(checkpoint: Checkpoint, quantize: str, layout: Layout) -> None:
    """Raises UsageError for a target that does not multiply it, and for rows that do not hold whole blocks of it."""
    if layout != "rows":
        raise UsageError(f"--quantize {quantize} is for NVIDIA targets: no CPU multiplies FP8", hint="add --target sm90, or take int8")
    multiple = FP8_GROUP if quantize == "fp8-block" else ALIGNMENT
    for name, info in checkpoint.parameters.items():
        if len(info.shape) == 2 and name not in _TABLES and info.shape[1] % multiple:
            raise UsageError(
                f"--quantize {quantize} needs rows of a multiple of {multiple}, and {name} is {list(info.shape)}",
                hint="take fp8, whose rows have one scale each" if multiple == FP8_GROUP else "take int8",
            )

"""How an artifact stores each parameter: as the checkpoint does, or quantized."""

from ..errors import UsageError
from ..kernels.formats import FP8_FORMATS, QUANTIZED_FORMATS
from ..kernels.linear.packed import DENSE_DTYPES, Layout
from ..kernels.nvidia.packed_rows import ALIGNMENT, FP8_GROUP
from ..models.checkpoint import Checkpoint

_MATRIX_FORMAT: dict[str, str] = {"int8": "q8_0", "int4": "q4_1", "fp8": "fp8_channel", "fp8-block": "fp8_block"}
_TABLE_FORMAT: dict[str, str] = {"int8": "q8_0", "int4": "q8_0", "fp8": "bf16", "fp8-block": "bf16"}
_TABLES = frozenset({"embed.weight", "head.weight"})
"""Embedding and LM head stay at 8 bits under int4, and at 16 under FP8: fewer there cost the most accuracy of all."""


def choose_formats(checkpoint: Checkpoint, quantize: str, layout: Layout = "panels") -> dict[str, str]:
    """Storage format of every parameter, by name. In rows, matrices that are not quantized are bfloat16: what tensor cores multiply. In
    panels, FP8 ones are widened: no CPU multiplies them.

    Raises UsageError if `quantize` asks to quantize a checkpoint that is quantized already.
    """
    stored = {name: info.format for name, info in checkpoint.parameters.items()}
    if layout == "panels":
        stored |= {name: "f32" for name, format in stored.items() if format in FP8_FORMATS}
    if layout == "rows":
        stored |= {n: "bf16" for n, info in checkpoint.parameters.items() if len(info.shape) == 2 and info.format in DENSE_DTYPES}
    if quantize == "none":
        return dict(stored)
    if _MATRIX_FORMAT[quantize] in FP8_FORMATS:
        _check_fp8(checkpoint, quantize, layout)
    quantized = sorted(set(stored.values()) & set(QUANTIZED_FORMATS))
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

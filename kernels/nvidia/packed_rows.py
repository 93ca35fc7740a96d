"""How weights lie for NVIDIA: shapes alone, importable without Triton. What is in a row is in formats.py."""

from ..linear.blocks import FORMATS, GROUP

ALIGNMENT = 16
"""Rows start at multiples of this many bytes: what one thread loads at once."""

ROW_FORMATS = ("q8_0", "q4_0", "q4_1")
"""Block formats that NVIDIA's kernels read."""

FP8_LAYOUTS = ("fp8_channel", "fp8_block")
"""How rows of FP8 numbers, of weights and of activations, carry their scales (see fp8.py)."""
FP8_STATIC = "fp8_tensor"
"""Rows as in fp8_channel; but the scale of a linear's activations is a tensor of its own, the same for all tokens."""
FP8_FORMATS = (*FP8_LAYOUTS, FP8_STATIC)
FP8_GROUP = 128
"""Elements of a row that share a scale in fp8_block. In the other formats all of them do."""


def fp8_layout(format: str) -> str:
    """How rows lie in a format; of one that is not FP8, itself."""
    return "fp8_channel" if format == FP8_STATIC else format


def input_scale_name(weight: str) -> str:
    """What the scale [1] float32 of the activations that an fp8_tensor weight is multiplied with is called."""
    return f"{weight.removesuffix('weight')}input_scale"


def fp8_row_bytes(format: str, in_features: int) -> int:
    """Bytes of a row of float8_e4m3fn numbers with its float32 scales after them, of weights and of activations (see fp8.py)."""
    multiple = FP8_GROUP if format == "fp8_block" else ALIGNMENT
    assert in_features % multiple == 0, f"rows of {in_features} numbers are not whole in {format}: a multiple of {multiple} is"
    scales = in_features // FP8_GROUP if format == "fp8_block" else 1
    return in_features + -(-4 * scales // ALIGNMENT) * ALIGNMENT


def fp8_in_features(format: str, row_bytes: int) -> int:
    """K, from the bytes of such a row."""
    if format != "fp8_block":
        return row_bytes - ALIGNMENT
    # 512 numbers, or the last few of a row, have 16 bytes of scales.
    return row_bytes - ALIGNMENT * -(-row_bytes // (4 * FP8_GROUP + ALIGNMENT))


def packed_shape(format: str, out_features: int, in_features: int) -> tuple[int, int]:
    """Shape of a weight [out_features, in_features]: elements of a dense one, bytes of a quantized one."""
    if format in FP8_FORMATS:
        return out_features, fp8_row_bytes(format, in_features)
    if format not in ROW_FORMATS:
        return out_features, in_features
    groups, spec = -(-in_features // GROUP), FORMATS[format]
    parts = (groups * spec.code_bytes, *(2 * groups for _ in range(spec.numbers)))
    return out_features, sum(-(-part // ALIGNMENT) * ALIGNMENT for part in parts)

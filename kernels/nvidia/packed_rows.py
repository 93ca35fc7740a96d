"""How weights lie for NVIDIA: shapes alone, importable without Triton. What is in a row is in formats.py."""

from ..linear.blocks import FORMATS, GROUP

ALIGNMENT = 16
"""Rows start at multiples of this many bytes: what one thread loads at once."""


FP8_FORMATS = ("fp8_channel", "fp8_block")
FP8_GROUP = 128
"""Elements of a row that share a scale in fp8_block. In fp8_channel all of them do."""


def fp8_row_bytes(format: str, in_features: int) -> int:
    """Bytes of a row of float8_e4m3fn numbers with its float32 scales after them, of weights and of activations (see fp8.py)."""
    multiple = FP8_GROUP if format == "fp8_block" else ALIGNMENT
    assert in_features % multiple == 0, f"rows of {in_features} numbers are not whole in {format}: a multiple of {multiple} is"
    scales = in_features // FP8_GROUP if format == "fp8_block" else 1
    return in_features + -(-4 * scales // ALIGNMENT) * ALIGNMENT


def fp8_in_features(format: str, row_bytes: int) -> int:
    """K, from the bytes of such a row."""
    if format == "fp8_channel":
        return row_bytes - ALIGNMENT
    # 512 numbers, or the last few of a row, have 16 bytes of scales.
    return row_bytes - ALIGNMENT * -(-row_bytes // (4 * FP8_GROUP + ALIGNMENT))


def packed_shape(format: str, out_features: int, in_features: int) -> tuple[int, int]:
    """Shape of a weight [out_features, in_features]: elements of a dense one, bytes of a quantized one."""
    if format in FP8_FORMATS:
        return out_features, fp8_row_bytes(format, in_features)
    if format not in FORMATS:
        return out_features, in_features
    groups, spec = -(-in_features // GROUP), FORMATS[format]
    parts = (groups * spec.quant_bytes, *(2 * groups for _ in range(spec.scales)))
    return out_features, sum(-(-part // ALIGNMENT) * ALIGNMENT for part in parts)

"""How weights lie for NVIDIA: shapes alone, importable without Triton. What is in a row is in formats.py."""

from typing import NamedTuple

from ..linear.blocks import FORMATS, GROUP

ALIGNMENT = 16
"""Rows start at multiples of this many bytes: what one thread loads at once."""

ROW_FORMATS = (
    *("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4", "nvfp4_mul", "nvfp4_div"),
    *("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs"),
    *("w4_g32", "w4_g64", "w4_g128", "w8_g32", "w8_g64", "w8_g128"),
    *("i4_g32", "i5_g32", "i6_g32"),
)
"""Block formats that NVIDIA's kernels read."""


class Plane(NamedTuple):
    """Some bits of every code: `width` of them, and the bits of a code `below` those. A run of 32 bytes has them for `parts` groups."""

    width: int
    below: int

    @property
    def parts(self) -> int:
        return 8 // self.width


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
    return out_features, sum(part_bytes(format, in_features).values())


def planes(format: str) -> tuple[Plane, ...]:
    """Four bits of codes that have them (of codes below, two; of bytes, all), then what is above them."""
    bits = FORMATS[format].bits
    low = 8 if bits == 8 else 4 if bits >= 4 else 2
    return (Plane(low, 0), Plane(bits - low, low)) if bits > low else (Plane(low, 0),)


def unit_groups(format: str) -> int:
    """Groups of 32 weights of a unit: the fewest whose codes fill whole runs of every plane."""
    return max(plane.parts for plane in planes(format))


def units_of(format: str, in_features: int) -> int:
    """Units of a row, whose last is filled up with zeros."""
    block = FORMATS[format].block
    groups = -(-in_features // block) * block // GROUP
    return -(-groups // unit_groups(format))


def part_bytes(format: str, in_features: int) -> dict[str, int]:
    """The parts of a row in order (see formats.py), with their padding."""
    spec, groups = FORMATS[format], units_of(format, in_features) * unit_groups(format)
    blocks = 1 if spec.of_rows else -(-groups // spec.groups)
    sizes = {f"plane{plane.below}": groups * GROUP * plane.width // 8 for plane in planes(format)}
    sizes["numbers"] = blocks * spec.number_bytes * spec.numbers
    if spec.has_zero_point:
        sizes["zeros"] = blocks
    if spec.two_levels:
        sizes["integers"] = groups * spec.subscales * spec.numbers
    return {name: -(-size // ALIGNMENT) * ALIGNMENT for name, size in sizes.items()}


def part_offset(format: str, in_features: int, part: str) -> int:
    """Bytes from the start of a row to one of its parts; to its end, if it has none of that name."""
    offset = 0
    for name, size in part_bytes(format, in_features).items():
        if name == part:
            break
        offset += size
    return offset

"""The registry of quantized weights: the block formats of GGUF, those of GPTQ, AWQ, compressed-tensors and ModelOpt, and our own.

A row of weights is cut into blocks. Each has one or two numbers, `d` (and `m`), and a code of a few bits for each
weight; in formats of two levels also small numbers that scale (and shift) every 16 or 32 of them. With c the code
and v(c) what it stands for, c - zero (the format's, or a zero point that the block has) or an entry of a table:

- of one level    value = d * v(c) (+ m)
- of two levels   value = d * scale * v(c) (- m * min), or (scale / d) * v(c)

Everything else about a format is derived from its row here: `stored_blocks.py` reads its blocks, `formats.py` has their
layout in memory, `reference.py` their arithmetic.
"""

from dataclasses import dataclass

GROUP = 32
MOST_COLUMNS = 65536
"""Of a matrix whose products are added as integers of 32 bits over all of K (cpu/dot.h: kMostRowQuads)."""
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Doubled, so that they are whole: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives."""


@dataclass(frozen=True, kw_only=True)
class QuantizedFormat:
    """What a block is made of. bits: of a code. zero: the code that stands for 0, where there is no table."""

    name: str
    bits: int
    zero: int = 0
    table: tuple[int, ...] = ()
    """What each code stands for."""
    has_min: bool = False
    block: int = GROUP
    """Weights of a block."""
    subgroup: int = 0
    """Of two levels: weights with a scale of their own, an integer unless `e4m3_scales`."""
    e4m3_scales: bool = False
    """The scales of 16 weights are float8_e4m3fn, and mean half of it: tables are doubled."""
    divides: bool = False
    """d divides those scales."""
    of_rows: bool = False
    """d and m are those of a whole row, which is one block of any number of groups, and its integer scales are unsigned."""
    row_activations: bool = False
    """Activations have one scale per row as well, and products are added as integers over all of K."""
    has_zero_point: bool = False
    """Each block has one, a signed byte."""
    number_bytes: int = 2
    """d and m are float16; of four bytes, float32; of one byte, d is the exponent of a power of two (e8m0), halved."""

    @property
    def two_levels(self) -> bool:
        return self.subgroup > 0

    @property
    def groups(self) -> int:
        """Of a block; the fewest of it where that is a row."""
        return self.block // GROUP

    @property
    def numbers(self) -> int:
        """Of a block: d, and m where there are minima."""
        return 2 if self.has_min else 1

    @property
    def head_bytes(self) -> int:
        """Of a block: its numbers and its zero point."""
        return self.number_bytes * self.numbers + self.has_zero_point

    @property
    def code_bytes(self) -> int:
        """Of the codes of a group."""
        return GROUP * self.bits // 8

    @property
    def subscales(self) -> int:
        """Scales of a group."""
        return GROUP // self.subgroup if self.two_levels else 0

    @property
    def group_bytes(self) -> int:
        """Of a group as it is packed: codes, scales and minima."""
        return self.code_bytes + self.subscales * self.numbers

    @property
    def packed_bytes(self) -> int:
        """Of a block as it is packed, of the smallest where that is a row."""
        return self.head_bytes + self.groups * self.group_bytes

    @property
    def head_first(self) -> bool:
        """Whether the head of a packed block is before its groups."""
        return self.groups > 1 or self.of_rows

    @property
    def bits_per_weight(self) -> float:
        """But for the head of a row."""
        return 8 * (0 if self.of_rows else self.head_bytes) / self.block + 8 * self.group_bytes / GROUP


GROUPED = ("w8_g128", "w8_g64", "w8_g32")
"""Formats that hold w8a8 where no kernel has activations with one scale per row; the first whose blocks a row is whole of."""

FORMATS = {
    spec.name: spec
    for spec in (
        QuantizedFormat(name="q8_0", bits=8),
        QuantizedFormat(name="q4_0", bits=4, zero=8),
        QuantizedFormat(name="q4_1", bits=4, has_min=True),
        QuantizedFormat(name="q5_0", bits=5, zero=16),
        QuantizedFormat(name="q5_1", bits=5, has_min=True),
        QuantizedFormat(name="iq4_nl", bits=4, table=_IQ4),
        QuantizedFormat(name="mxfp4", bits=4, table=_E2M1, number_bytes=1),
        *(
            QuantizedFormat(
                name=name, bits=4, table=_E2M1, block=64, subgroup=16, e4m3_scales=True, divides=name == "nvfp4_div", number_bytes=4
            )
            for name in ("nvfp4_mul", "nvfp4_div")
        ),
        QuantizedFormat(name="q2_k", bits=2, has_min=True, block=256, subgroup=16),
        QuantizedFormat(name="q3_k", bits=3, zero=4, block=256, subgroup=16),
        QuantizedFormat(name="q4_k", bits=4, has_min=True, block=256, subgroup=32),
        QuantizedFormat(name="q5_k", bits=5, has_min=True, block=256, subgroup=32),
        QuantizedFormat(name="q6_k", bits=6, zero=32, block=256, subgroup=16),
        QuantizedFormat(name="iq4_xs", bits=4, table=_IQ4, block=256, subgroup=32),
        *(
            QuantizedFormat(name=f"w{bits}_g{block}", bits=bits, has_zero_point=True, block=block, number_bytes=4)
            for bits in (4, 8)
            for block in (32, 64, 128)
        ),
        *(QuantizedFormat(name=f"i{bits}_g32", bits=bits, has_min=True, subgroup=32, of_rows=True, number_bytes=4) for bits in (4, 5, 6)),
        QuantizedFormat(name="w8a8", bits=8, of_rows=True, row_activations=True, number_bytes=4),
    )
}
"""By name. Codes of 8 bits are signed bytes. w4_g128 and its like are what GPTQ, AWQ and compressed-tensors publish, a scale per 128;
nvfp4_mul and nvfp4_div are NVFP4: d is the tensor's scale, by which ModelOpt multiplies and compressed-tensors divides; i4_g32 and
its like are what `--quantize` makes (quantize.py); w8a8 is compressed-tensors' with activations of 8 bits and a
scale per token."""

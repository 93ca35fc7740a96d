"""The block formats of GGUF that we carry: what a group of 32 weights is made of."""

from dataclasses import dataclass

GROUP = 32


@dataclass(frozen=True, kw_only=True)
class QuantizedFormat:
    """A GGUF block: `scales` float16 numbers (scale, then min), then 32 values of `bits` bits."""

    name: str
    bits: int
    scales: int
    zero: int = 0
    """What is subtracted from the stored value."""

    @property
    def quant_bytes(self) -> int:
        return GROUP * self.bits // 8

    @property
    def block_bytes(self) -> int:
        return 2 * self.scales + self.quant_bytes

    @property
    def has_min(self) -> bool:
        return self.scales == 2


FORMATS = {
    spec.name: spec
    for spec in (
        QuantizedFormat(name="q8_0", bits=8, scales=1),
        QuantizedFormat(name="q4_0", bits=4, scales=1, zero=8),
        QuantizedFormat(name="q4_1", bits=4, scales=2),
    )
}

"""GPTQ: MODULE.qweight int32 [K * bits / 32, N], eight codes of 4 bits (four of 8) along K in each, lowest bits first; MODULE.qzeros
int32 [G, N * bits / 32], as many along N; MODULE.scales [G, N]; MODULE.g_idx int32 [K], the group of each column of the weight.

value = scale * (code - zero). Files of the first version store zero - 1, within the bits of a code. With act-order (desc_act) columns
of a group lie apart.
"""

from collections.abc import Mapping
from typing import Any

from ...errors import UnsupportedModelError
from .safetensors_header import StoredTensor
from .zero_points import SCALE_DTYPES, Matrix, Numbers, ZeroPointStorage, unpacked, words


class GPTQStorage(ZeroPointStorage):
    """Of 4 or 8 bits."""

    scheme = "GPTQ"
    parts = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
        bits = config.get("bits")
        if bits not in (4, 8):
            raise UnsupportedModelError(
                f"config.json: GPTQ of {bits} bits is not supported", hint="4 and 8 bits are; or give a GGUF file of this model"
            )
        self._bits = int(bits)
        self._bias = 0 if config.get("checkpoint_format") == "gptq_v2" else 1
        super().__init__(tensors)

    def _module_of(self, name: str, tensors: Mapping[str, StoredTensor]) -> str | None:
        return name.removesuffix(".qweight") if name.endswith(".qweight") else None

    def _matrix(self, module: str, parts: Mapping[str, StoredTensor]) -> Matrix:
        matrix = Matrix(module=module, shape=(0, 0), bits=self._bits, groups=1, parts=parts)
        for part in ("qweight", "scales"):
            if part not in parts or len(parts[part].shape) != 2:
                raise matrix.damaged(f"{part} is missing or no matrix")
        groups, rows = parts["scales"].shape
        columns = parts["qweight"].shape[0] * 32 // self._bits
        matrix = Matrix(module=module, shape=(rows, columns), bits=self._bits, groups=groups, parts=parts)
        if not groups or columns % groups:
            raise matrix.damaged(f"{columns} columns are not whole groups, of which it has scales for {groups}")
        matrix.check("qweight", ("I32",), (words(columns, self._bits), rows))
        matrix.check("qzeros", ("I32",), (groups, words(rows, self._bits)))
        matrix.check("scales", SCALE_DTYPES, (groups, rows))
        return matrix.with_groups("g_idx") if "g_idx" in parts else matrix

    def _numbers(self, matrix: Matrix) -> Numbers:
        rows, columns = matrix.shape
        codes = unpacked(matrix.read("qweight").T, matrix.bits, columns)
        zeros = unpacked(matrix.read("qzeros"), matrix.bits, rows).T + self._bias & (1 << matrix.bits) - 1
        return Numbers(codes, zeros, matrix.read("scales").float().T)

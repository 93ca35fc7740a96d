"""AWQ, in both of AutoAWQ's layouts. value = scale * (code - zero), codes of 4 bits.

- `gemm`: MODULE.qweight int32 [K, N / 8], eight codes along N in each, in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on;
  MODULE.qzeros int32 [G, N / 8] likewise; MODULE.scales [G, N].
- `gemv`: MODULE.qweight int32 [N, K / 8], eight codes along K in each, lowest bits first; MODULE.qzeros int32 [N, W] likewise along
  the groups, and MODULE.scales [N, 8 W], of which the first G count: W is rounded up.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ...errors import UnsupportedModelError
from .safetensors_header import StoredTensor
from .zero_points import SCALE_DTYPES, Matrix, Numbers, ZeroPointStorage, unpacked, words

_PLACES = torch.tensor((0, 4, 1, 5, 2, 6, 3, 7))
"""Where each of eight columns lies."""


class AWQStorage(ZeroPointStorage):
    """Of 4 bits."""

    scheme = "AWQ"
    parts = ("qweight", "qzeros", "scales")

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
        self._version, self._group = str(config.get("version", "gemm")).lower(), config.get("group_size", config.get("q_group_size"))
        if config.get("bits", config.get("w_bit")) != 4 or self._version not in ("gemm", "gemv"):
            raise UnsupportedModelError(
                f"config.json: AWQ of {config.get('bits')} bits, version {self._version}, is not supported",
                hint="4 bits in the versions gemm and gemv are, as nearly all checkpoints have; or give a GGUF file of this model",
            )
        super().__init__(tensors)

    def _module_of(self, name: str, tensors: Mapping[str, StoredTensor]) -> str | None:
        return name.removesuffix(".qweight") if name.endswith(".qweight") else None

    def _matrix(self, module: str, parts: Mapping[str, StoredTensor]) -> Matrix:
        matrix = Matrix(module=module, shape=(0, 0), bits=4, groups=1, parts=parts)
        for part in ("qweight", "scales"):
            if part not in parts or len(parts[part].shape) != 2:
                raise matrix.damaged(f"{part} is missing or no matrix")
        if self._version == "gemv":
            return self._along_inputs(matrix)
        groups, rows = parts["scales"].shape
        columns = parts["qweight"].shape[0]
        matrix = Matrix(module=module, shape=(rows, columns), bits=4, groups=groups, parts=parts)
        if rows % 8 or not groups or columns % groups:
            raise matrix.damaged(f"{rows} rows are not whole words of eight, or {columns} columns not {groups} whole groups")
        matrix.check("qweight", ("I32",), (columns, rows // 8))
        matrix.check("qzeros", ("I32",), (groups, rows // 8))
        matrix.check("scales", SCALE_DTYPES, (groups, rows))
        return matrix

    def _along_inputs(self, unknown: Matrix) -> Matrix:
        rows, columns = unknown.parts["qweight"].shape[0], unknown.parts["qweight"].shape[1] * 8
        group = columns if self._group in (None, -1) else self._group
        if not isinstance(group, int) or group < 1 or columns % group:
            raise unknown.damaged(f"{columns} columns are not whole groups of {group}")
        matrix = replace(unknown, shape=(rows, columns), groups=columns // group)
        width = unknown.parts["scales"].shape[1] // 8
        matrix.check("qweight", ("I32",), (rows, columns // 8))
        matrix.check("qzeros", ("I32",), (rows, max(width, words(matrix.groups, 4))))
        matrix.check("scales", SCALE_DTYPES, (rows, 8 * max(width, words(matrix.groups, 4))))
        return matrix

    def _numbers(self, matrix: Matrix) -> Numbers:
        rows, columns = matrix.shape
        if self._version == "gemv":
            zeros = unpacked(matrix.read("qzeros"), 4, matrix.groups)
            return Numbers(unpacked(matrix.read("qweight"), 4, columns), zeros, matrix.read("scales")[:, : matrix.groups].float())

        def in_order(packed: torch.Tensor) -> torch.Tensor:
            eights: torch.Tensor = unpacked(packed, 4, rows).unflatten(1, (-1, 8))
            return eights[:, :, _PLACES].flatten(1).T

        return Numbers(in_order(matrix.read("qweight")), in_order(matrix.read("qzeros")), matrix.read("scales").float().T)

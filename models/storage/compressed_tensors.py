"""compressed-tensors with whole numbers.

- `pack-quantized`: MODULE.weight_packed int32 [N, ceil(K * bits / 32)], codes along K, lowest bits first, each with 2^(bits - 1) added;
  MODULE.weight_scale [N, G]; MODULE.weight_zero_point int32 [ceil(N * bits / 32), G], packed along N in the same way, where the
  scheme is asymmetric; MODULE.weight_g_idx [K] with act-order; MODULE.weight_shape.
- `int-quantized`: MODULE.weight int8 [N, K], MODULE.weight_scale [N, 1], [N, G] or one number, MODULE.weight_zero_point int8 likewise.
- `mxfp4-pack-quantized`: MODULE.weight_packed uint8 [N, K / 2], two e2m1 numbers in each, the lower half first; MODULE.weight_scale
  uint8 [N, K / 32], exponents. Its blocks are those of mxfp4.
- `nvfp4-pack-quantized`: the same codes, MODULE.weight_scale float8_e4m3fn [N, K / 16], MODULE.weight_global_scale float32:
  value = code * (scale / global scale), which nvfp4_div keeps.

`int-quantized` weights with one scale per row or for all, symmetric, whose scheme has symmetric dynamic activations of 8 bits per token,
are multiplied with such activations: w8a8. Elsewhere scales of activations are not used: ours are taken from the activations themselves,
per token and 32 of them.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ...kernels.linear.blocks import GROUP, MOST_COLUMNS
from ..checkpoint import Format, LoadedTensor
from .nvfp4 import DIV, WIDENED, load_nvfp4, nvfp4_format
from .safetensors_header import StoredTensor
from .token_activations import TokenActivations
from .zero_points import SCALE_DTYPES, Matrix, Numbers, ZeroPointStorage, unpacked, words

WHOLE_NUMBERS = ("pack-quantized", "int-quantized")
FOUR_BIT_FLOATS = ("mxfp4-pack-quantized", "nvfp4-pack-quantized")


class CompressedTensorsStorage(ZeroPointStorage):
    """Of 4 or 8 bits; each matrix is of the kind that its tensors show."""

    scheme = "compressed-tensors"
    parts = (
        "weight_packed",
        "weight",
        "weight_scale",
        "weight_zero_point",
        "weight_shape",
        "weight_g_idx",
        "weight_global_scale",
        "input_scale",
        "input_zero_point",
        "input_global_scale",
        "output_scale",
        "k_scale",
        "v_scale",
    )

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
        self._activations = TokenActivations(config)  # all else is said by every matrix
        super().__init__({name: tensor for name, tensor in tensors.items() if not name.endswith((".k_scale", ".v_scale", ".q_scale"))})

    def _module_of(self, name: str, tensors: Mapping[str, StoredTensor]) -> str | None:
        if name.endswith(".weight_packed"):
            return name.removesuffix(".weight_packed")
        return name.removesuffix(".weight") if name.endswith(".weight") and tensors[name].dtype == "I8" else None

    def _matrix(self, module: str, parts: Mapping[str, StoredTensor]) -> Matrix:
        packed = parts.get("weight_packed") or parts["weight"]
        unknown = Matrix(module=module, shape=(0, 0), bits=4, groups=1, parts=parts)
        if len(packed.shape) != 2 or "weight_scale" not in parts:
            raise unknown.damaged("its numbers are no matrix, or have no weight_scale")
        if packed.dtype == "U8":
            return _of_floats(unknown, packed.shape)
        rows, columns = packed.shape
        bits = 8
        if "weight_packed" in parts:
            unknown.check("weight_shape", ("I64", "I32"), (2,))
            shape = [int(size) for size in unknown.read("weight_shape")]
            if shape[0] != rows or shape[1] < 1 or packed.shape[1] not in (words(shape[1], 4), words(shape[1], 8)):
                raise unknown.damaged(f"weight_packed is {list(packed.shape)}, which is neither 4 nor 8 bits for a weight_shape of {shape}")
            columns, bits = shape[1], 4 if packed.shape[1] == words(shape[1], 4) else 8
        scales = parts["weight_scale"]
        groups = scales.shape[1] if len(scales.shape) == 2 else 1
        matrix = Matrix(module=module, shape=(rows, columns), bits=bits, groups=groups, parts=parts)
        if not groups or columns % groups:
            raise matrix.damaged(f"{columns} columns are not whole groups, of which it has scales for {groups}")
        matrix.check("weight_scale", SCALE_DTYPES, (rows, groups), (rows,), (1,), ())
        if "weight_zero_point" in parts:
            zeros = (words(rows, bits), groups) if "weight_packed" in parts else scales.shape
            matrix.check("weight_zero_point", ("I32",) if "weight_packed" in parts else ("I8",), zeros)
        return matrix.with_groups("weight_g_idx") if "weight_g_idx" in parts else matrix

    def format(self, name: str) -> Format:
        matrix = self._matrices.get(name)
        if matrix is not None and _is_float(matrix):
            return "mxfp4" if matrix.parts["weight_scale"].dtype == "U8" else nvfp4_format(matrix.shape[1], DIV)
        return "w8a8" if matrix is not None and self._is_w8a8(matrix) else super().format(name)

    def _is_w8a8(self, matrix: Matrix) -> bool:
        plain = matrix.groups == 1 and not {"weight_packed", "weight_zero_point", "weight_g_idx"} & matrix.parts.keys()
        fits = matrix.shape[1] % GROUP == 0 and matrix.shape[1] <= MOST_COLUMNS
        return plain and fits and self._activations.of(matrix.module)

    def widened_from(self, name: str) -> str:
        matrix = self._matrices.get(name)
        return WIDENED if matrix is not None and _is_float(matrix) and self.format(name) == "f32" else super().widened_from(name)

    def load(self, name: str) -> LoadedTensor:
        matrix = self._matrices.get(name)
        if matrix is None or not _is_float(matrix):
            return super().load(name) if matrix is None or not self._is_w8a8(matrix) else _rows(matrix)
        codes = unpacked(matrix.read("weight_packed"), 4, matrix.shape[1])
        scales = matrix.read("weight_scale").view(torch.uint8)
        if self.format(name) == "mxfp4":
            halves = codes.to(torch.uint8).unflatten(1, (-1, 2, 16))
            blocks = torch.cat((scales[:, :, None], halves[:, :, 0] | halves[:, :, 1] << 4), dim=2)
            return LoadedTensor(format="mxfp4", data=blocks.flatten(1))
        try:
            return load_nvfp4(DIV, codes, scales, matrix.read("weight_global_scale"))
        except ValueError as error:
            raise matrix.damaged(str(error)) from error

    def _numbers(self, matrix: Matrix) -> Numbers:
        rows, columns = matrix.shape
        half = 1 << matrix.bits - 1
        scales = matrix.read("weight_scale").float().reshape(-1, matrix.groups).expand(rows, -1)
        zeros = torch.full_like(scales, half, dtype=torch.int16)
        if "weight_packed" in matrix.parts:
            codes = unpacked(matrix.read("weight_packed"), matrix.bits, columns)
            if "weight_zero_point" in matrix.parts:
                zeros = unpacked(matrix.read("weight_zero_point").T, matrix.bits, rows).T
        else:
            codes = matrix.read("weight").to(torch.int16) + half
            if "weight_zero_point" in matrix.parts:
                zeros = zeros + matrix.read("weight_zero_point").reshape(-1, matrix.groups)
        return Numbers(codes, zeros, scales)


def _rows(matrix: Matrix) -> LoadedTensor:
    """Rows of w8a8 (kernels/linear/stored_blocks.py): scale, codes."""
    scales = matrix.read("weight_scale").float().reshape(-1, 1)
    if not bool(scales.isfinite().all()):
        raise matrix.damaged("a scale is not a finite number")
    of_rows = scales.expand(matrix.shape[0], 1).contiguous().view(torch.uint8)
    return LoadedTensor(format="w8a8", data=torch.cat((of_rows, matrix.read("weight").view(torch.uint8)), dim=1))


def _is_float(matrix: Matrix) -> bool:
    return "weight_packed" in matrix.parts and matrix.parts["weight_packed"].dtype == "U8"


def _of_floats(unknown: Matrix, packed: tuple[int, ...]) -> Matrix:
    rows, columns = packed[0], 2 * packed[1]
    group = 32 if unknown.parts["weight_scale"].dtype == "U8" else 16
    if columns % group:
        raise unknown.damaged(f"{columns} columns are not whole groups of {group}")
    matrix = Matrix(module=unknown.module, shape=(rows, columns), bits=4, groups=columns // group, parts=unknown.parts)
    matrix.check("weight_scale", ("U8", "F8_E4M3"), (rows, columns // group))
    if group == 16:
        matrix.check("weight_global_scale", ("F32",), (1,), ())
    return matrix

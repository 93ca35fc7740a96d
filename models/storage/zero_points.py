"""Matrices that published schemes store as whole numbers, scales and zero points in tensors of their own: value = scale * (code - zero).

What is common to GPTQ, AWQ and compressed-tensors (each beside this file): finding the tensors of a matrix, and making the blocks of
kernels/linear/blocks.py of them, in which every code, scale and zero point is kept.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ...errors import CheckpointError
from ..checkpoint import Format, LoadedTensor
from .dense import DenseStorage
from .file_ranges import read_range
from .safetensors_header import StoredTensor

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
}
SCALE_DTYPES = ("F32", "F16", "BF16")
_BLOCKS = (128, 64, 32)


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix and the tensors that it lies in, by what they are called behind the module's name.

    module: the name that all of them begin with. shape: [N, K]. groups: of K, each with a scale and a zero point. group_of: that of each
    column, int64 [K], where groups are not consecutive columns (act-order).
    """

    module: str
    shape: tuple[int, int]
    bits: int
    groups: int
    parts: Mapping[str, StoredTensor]
    group_of: torch.Tensor | None = None

    @property
    def block(self) -> int | None:
        """Weights of a block that no group ends within, once columns are sorted by group; None if there is no such block."""
        per_group = self.shape[1] // self.groups
        return None if self._is_uneven else next((block for block in _BLOCKS if per_group % block == 0), None)

    @property
    def order(self) -> torch.Tensor | None:
        """Columns sorted by group, int64 [K]; None where they are."""
        return None if self.group_of is None or self.block is None else self.group_of.argsort(stable=True)

    @property
    def _is_uneven(self) -> bool:
        """Whether groups have more columns or fewer than others."""
        return self.group_of is not None and bool((self.group_of.bincount(minlength=self.groups) != self.shape[1] // self.groups).any())

    def with_groups(self, part: str) -> "Matrix":
        """The same with the group of each column, as a tensor says it. Raises CheckpointError for groups that there are not."""
        self.check(part, ("I32", "I64"), (self.shape[1],))
        group_of = self.read(part).long()
        if bool(((group_of < 0) | (group_of >= self.groups)).any()):
            wrong = int(group_of.max() if group_of.min() >= 0 else group_of.min())
            raise self.damaged(f"{part} has the group {wrong} of {self.groups}")
        in_order = torch.equal(group_of, torch.arange(self.shape[1]) // (self.shape[1] // self.groups))
        return self if in_order else replace(self, group_of=group_of)

    def read(self, part: str) -> torch.Tensor:
        """One of its tensors. Raises CheckpointError if the file changed or cannot be read."""
        stored = self.parts[part]
        return read_range(stored.path, stored.offset, stored.size).view(_DTYPES[stored.dtype]).view(stored.shape)

    def damaged(self, reason: str) -> CheckpointError:
        """The error for a matrix whose tensors do not fit together."""
        return CheckpointError(f"{self.module}: {reason}", hint="the checkpoint is damaged or of an unknown kind; fetch it again")

    def check(self, part: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
        """Raises CheckpointError unless there is a tensor of that name, and it is of one of these dtypes and shapes."""
        stored = self.parts.get(part)
        if stored is None:
            raise self.damaged(f"it has no {part}")
        if stored.dtype not in dtypes or stored.shape not in shapes:
            wanted = f"{' or '.join(dtypes)} {' or '.join(str(list(shape)) for shape in shapes)}"
            raise self.damaged(f"{part} is {stored.dtype} {list(stored.shape)}; it must be {wanted}")


@dataclass(frozen=True)
class Numbers:
    """codes int16 [N, K]; zeros int16 and scales float32 [N, G]."""

    codes: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor


class ZeroPointStorage(DenseStorage):
    """Quantized matrices, and what is not quantized as it is."""

    scheme: str
    """What the type is called in what a build says."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        rest, self._matrices = dict(tensors), {}
        for name in tensors:
            if (module := self._module_of(name, tensors)) is None:
                continue
            parts = {part: rest.pop(f"{module}.{part}") for part in self.parts if f"{module}.{part}" in rest}
            matrix = self._matrix(module, parts)
            self._matrices[f"{module}.weight"] = matrix
            rest[f"{module}.weight"] = replace(next(iter(parts.values())), dtype=self.scheme, shape=matrix.shape)
        super().__init__(rest)

    parts: tuple[str, ...]
    """What the tensors of a matrix are called behind its module's name, those that carry nothing we use included."""

    @abstractmethod
    def _module_of(self, name: str, tensors: Mapping[str, StoredTensor]) -> str | None:
        """The module whose matrix this tensor begins; None if it begins none."""

    @abstractmethod
    def _matrix(self, module: str, parts: Mapping[str, StoredTensor]) -> Matrix:
        """Raises CheckpointError for tensors that do not fit together."""

    @abstractmethod
    def _numbers(self, matrix: Matrix) -> Numbers:
        """Raises CheckpointError for numbers that cannot be."""

    def format(self, name: str) -> Format:
        if name not in self._matrices:
            return super().format(name)
        matrix = self._matrices[name]
        return "f32" if matrix.block is None else f"w{matrix.bits}_g{matrix.block}"

    def widened_from(self, name: str) -> str:
        if name not in self._matrices or self.format(name) != "f32":
            return ""
        act_order = self._matrices[name].group_of is not None
        return f"{self.scheme} in {'act-order' if act_order else 'groups that are no multiple of 32'}"

    def order(self, name: str) -> torch.Tensor | None:
        order = self._matrices[name].order if name in self._matrices else None
        return None if order is None else order.to(torch.int32)

    def load(self, name: str) -> LoadedTensor:
        if name not in self._matrices:
            return super().load(name)
        matrix = self._matrices[name]
        numbers = self._numbers(matrix)
        if not bool(numbers.scales.isfinite().all()):
            raise matrix.damaged("a scale is not a finite number")
        if matrix.block is None:
            return LoadedTensor(format="f32", data=_values(numbers, matrix.group_of))
        if (order := matrix.order) is not None:
            numbers = replace(numbers, codes=numbers.codes[:, order])
        return LoadedTensor(format=self.format(name), data=_blocks(matrix.bits, matrix.block, numbers), order=self.order(name))


def _values(numbers: Numbers, group_of: torch.Tensor | None) -> torch.Tensor:
    """float32 [N, K]"""
    codes = numbers.codes
    groups = torch.arange(codes.shape[1]) // (codes.shape[1] // numbers.scales.shape[1]) if group_of is None else group_of
    return (codes - numbers.zeros[:, groups]).float() * numbers.scales[:, groups]


def _blocks(bits: int, block: int, numbers: Numbers) -> torch.Tensor:
    """Blocks of w4_g128 and its like (kernels/linear/stored_blocks.py), uint8 [N, bytes]: scale, zero point, codes."""
    rows, columns = numbers.codes.shape
    repeats = columns // block // numbers.scales.shape[1]
    scales = numbers.scales.repeat_interleave(repeats, dim=1).contiguous().view(torch.uint8).view(rows, -1, 4)
    if bits == 8:  # codes are signed bytes
        codes, zeros = (numbers.codes - 128).to(torch.int8).view(torch.uint8), numbers.zeros - 128
    else:
        halves = numbers.codes.to(torch.uint8).unflatten(1, (-1, 2, 16))
        codes, zeros = (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1), numbers.zeros
    signed = zeros.to(torch.int8).view(torch.uint8).repeat_interleave(repeats, dim=1)[:, :, None]
    return torch.cat((scales, signed, codes.unflatten(1, (columns // block, -1))), dim=2).flatten(1)


def unpacked(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Codes of 4 or 8 bits out of int32 along the last dimension, lowest bits first; the first `count`, int16."""
    data = packed.contiguous().view(torch.uint8)
    if bits == 4:
        data = torch.stack((data & 0x0F, data >> 4), dim=-1).flatten(-2)
    return data[..., :count].to(torch.int16)


def words(count: int, bits: int) -> int:
    """int32 that hold so many codes."""
    return math.ceil(count * bits / 32)

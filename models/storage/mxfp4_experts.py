"""MXFP4 as gpt-oss publishes it (`quant_method` mxfp4): the experts of a layer in blocks of 32 columns, all else in plain numbers.

NAME_blocks uint8 [E, N, K / 32, 16], two e2m1 numbers in each byte, the lower half first; NAME_scales uint8 [E, N, K / 32], exponents.
Here both are one tensor NAME_blocks, [E, N, K], whose blocks are those of mxfp4.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from ...errors import CheckpointError
from ..checkpoint import Format, LoadedTensor
from .dense import DenseStorage
from .file_ranges import read_range
from .safetensors_header import StoredTensor

_BLOCKS, _SCALES = "_blocks", "_scales"
_BLOCK = 32


class MXFP4ExpertsStorage(DenseStorage):
    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        names = {name: name.removesuffix(_BLOCKS) + _SCALES for name in tensors if name.endswith(_BLOCKS)}
        for blocks, scales in names.items():
            _check(blocks, tensors[blocks], scales, tensors.get(scales))
        self._scales = {blocks: tensors[scales] for blocks, scales in names.items()}
        plain = {name: tensor for name, tensor in tensors.items() if name not in names.values()}
        super().__init__(plain | {name: _as_matrices(tensors[name]) for name in names})

    def format(self, name: str) -> Format:
        return "mxfp4" if name in self._scales else super().format(name)

    def load(self, name: str) -> LoadedTensor:
        if name not in self._scales:
            return super().load(name)
        stored, scales = self.tensors[name], self._scales[name]
        experts, rows, columns = stored.shape
        bytes_of = read_range(stored.path, stored.offset, stored.size).view(experts, rows, columns // _BLOCK, _BLOCK // 2)
        exponents = read_range(scales.path, scales.offset, scales.size).view(experts, rows, columns // _BLOCK)
        blocks = torch.empty(*exponents.shape, 1 + _BLOCK // 2, dtype=torch.uint8)
        for made, given, scale in zip(blocks, bytes_of, exponents, strict=True):  # one expert's at a time: all are many
            _put_blocks(made, given, scale)
        return LoadedTensor(format="mxfp4", data=blocks.view(experts * rows, -1))


def _put_blocks(made: torch.Tensor, given: torch.Tensor, scale: torch.Tensor) -> None:
    """made [N, K / 32, 17]: the exponent, then columns 0 to 15 in lower halves of bytes and 16 to 31 in upper ones. In `given` columns 2i
    and 2i + 1 share a byte."""
    first, second = given.chunk(2, dim=2)
    made[..., 0] = scale
    made[..., 1::2] = first & 0xF | second << 4
    made[..., 2::2] = first >> 4 | second & 0xF0


def _as_matrices(blocks: StoredTensor) -> StoredTensor:
    experts, rows, groups, _ = blocks.shape
    return replace(blocks, shape=(experts, rows, groups * _BLOCK))


def _check(name: str, blocks: StoredTensor, scales_name: str, scales: StoredTensor | None) -> None:
    """Raises CheckpointError where the two do not fit each other."""
    problem = ""
    if blocks.dtype != "U8" or len(blocks.shape) != 4 or blocks.shape[3] != _BLOCK // 2:
        problem = f"{name} is {blocks.dtype} {list(blocks.shape)}, and blocks are U8 [experts, rows, columns / {_BLOCK}, {_BLOCK // 2}]"
    elif scales is None:
        problem = f"{name} has no {scales_name}"
    elif scales.dtype != "U8" or scales.shape != blocks.shape[:3]:
        problem = f"{scales_name} is {scales.dtype} {list(scales.shape)}, and the blocks are for {list(blocks.shape[:3])}"
    if problem:
        raise CheckpointError(f"MXFP4 experts: {problem}", hint="the file is damaged; fetch it again")

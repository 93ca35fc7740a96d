"""What a tensor in any format of a checkpoint stands for, as float32."""

import torch

from ..kernels.formats import FP8_FORMATS, QUANTIZED_FORMATS
from ..kernels.linear.formats import values_of as block_values
from ..kernels.linear.stored_blocks import read_blocks
from ..kernels.nvidia import fp8
from ..kernels.nvidia.packed_rows import fp8_in_features


def values_of(stored: str, data: torch.Tensor, order: torch.Tensor | None = None) -> torch.Tensor:
    """As `dequantize`. order: that of the columns, int [K], if it is not the parameter's own."""
    values = dequantize(stored, data)
    return values if order is None else torch.empty_like(values).index_copy_(1, order.long(), values)


def dequantize(stored: str, data: torch.Tensor) -> torch.Tensor:
    """A stored tensor as float32 [N, K] (or its own shape when it is not a matrix); exact."""
    if stored in FP8_FORMATS:
        return fp8.unpack_fp8(stored, data, fp8_in_features(stored, data.shape[1]))
    if stored not in QUANTIZED_FORMATS:
        return data.to(torch.float32)
    return block_values(stored, read_blocks(stored, data))

"""Runs the recipe of a packed tensor: reads its sources from a checkpoint, one operation after another."""

from collections.abc import Sequence
from functools import partial

import torch

from ..errors import ArtifactError, CheckpointError
from ..kernels.formats import FP8_FORMATS, QUANTIZED_FORMATS
from ..kernels.linear.formats import pack_blocks, pack_dense
from ..kernels.linear.formats import values_of as block_values
from ..kernels.linear.quantize import Fit
from ..kernels.linear.quantize import quantize as quantize_blocks
from ..kernels.linear.stored_blocks import in_groups, read_blocks, split_head
from ..kernels.nvidia import formats as rows
from ..kernels.nvidia import fp8
from ..kernels.nvidia.packed_rows import fp8_in_features
from ..models.checkpoint import Checkpoint
from ..models.decoder import constants
from ..passes.rewrite import joined_values
from .quantizer import PLAIN, Quantizing
from .weights_plan import PackedWeight, operations_of


def make(weight: PackedWeight, checkpoint: Checkpoint, quantizing: Quantizing = PLAIN) -> torch.Tensor:
    """Run a recipe: reads the sources and returns the packed tensor, of the planned dtype and shape. quantizing: how floats become blocks.

    Raises CheckpointError for a source that cannot be read or quantized, ArtifactError for an operation that does not exist.
    """
    parts = [_make_part(source, operations_of(weight.recipe, index), checkpoint, quantizing) for index, source in enumerate(weight.sources)]
    match weight.recipe[-1:]:
        case (("concat" | "concat_flat" | "max") as how,):
            data = joined_values(parts, how)
        case _:
            (data,) = parts
    assert tuple(data.shape) == weight.shape, (weight, data.shape)
    return data.contiguous()


def _make_part(source: str, recipe: Sequence[str], checkpoint: Checkpoint, quantizing: Quantizing) -> torch.Tensor:
    if source not in checkpoint.parameters and (constant := constants(checkpoint.spec).get(source)) is not None:
        return constant.to(torch.float32).contiguous()
    loaded = checkpoint.read(source)
    data, held = loaded.data, loaded.format
    values = partial(values_of, order=loaded.order)
    if held in QUANTIZED_FORMATS:
        _check_blocks(held, data, _tensors(checkpoint, source))
    for operation in recipe:
        match operation.partition(":"):
            case "to_float32", _, _:
                data, held = values(held, data), "f32"
            case "to_bfloat16", _, _:
                data, held = values(held, data).bfloat16(), "bf16"
            case "in_groups", _, wanted:
                data, held = (data if held == wanted else in_groups(wanted, data)), wanted
            case "quantize", _, wanted if wanted == held:
                pass
            case "quantize", _, wanted:
                floats, tensor = values(held, data), _tensors(checkpoint, source)
                data, held = _quantize(wanted, floats, tensor, quantizing.importance.get(source), quantizing.fit), wanted
            case "pack_rows", _, _:
                data = rows.pack_rows(held, data)
            case "pack", _, _:
                data = pack_blocks(held, data) if held in QUANTIZED_FORMATS else pack_dense(data)
            case "concat" | "concat_flat" | "max", _, _:
                pass  # of all parts, once each is made
            case _:
                raise ArtifactError(f"there is no recipe {operation!r} for weights in this version", hint="build the artifact again")
    return data


def _tensors(checkpoint: Checkpoint, source: str) -> str:
    """What the checkpoint calls a parameter."""
    return " and ".join(checkpoint.tensors_of(source))


def _check_blocks(format: str, data: torch.Tensor, tensor: str) -> None:
    try:
        split_head(format, data)
    except ValueError as error:
        raise CheckpointError(f"tensor {tensor} is damaged: {error}", hint="fetch the file again") from error


def _quantize(wanted: str, values: torch.Tensor, tensor: str, importance: torch.Tensor | None, fit: Fit) -> torch.Tensor:
    """values: float32 [N, K]. tensor: what the checkpoint calls them. importance: of input channels, [K]."""
    finite = values.isfinite()
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        raise CheckpointError(
            f"tensor {tensor} cannot be quantized: row {row}, column {column} is {values[row, column].item()}",
            hint="the checkpoint is damaged, or its training diverged; without --quantize it is built as it is",
        )
    try:
        return fp8.quantize_fp8(wanted, values) if wanted in FP8_FORMATS else quantize_blocks(wanted, values, importance, fit)
    except ValueError as error:
        raise CheckpointError(
            f"tensor {tensor} cannot be quantized: values up to {values.abs().max().item():g} are beyond what {wanted} holds",
            hint="build without --quantize",
        ) from error


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

"""Runs the recipe of a packed tensor: reads its sources from a checkpoint, one operation after another."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from ..errors import ArtifactError, CheckpointError
from ..kernels.formats import FP8_FORMATS, QUANTIZED_FORMATS
from ..kernels.linear.formats import PANEL, pack_blocks, pack_dense
from ..kernels.linear.quantize import Fit
from ..kernels.linear.quantize import quantize as quantize_blocks
from ..kernels.linear.stored_blocks import in_groups, split_head
from ..kernels.nvidia import formats as rows
from ..kernels.nvidia import fp8
from ..models.checkpoint import Checkpoint, LoadedTensor
from ..models.decoder import constants
from ..models.stored_values import values_of
from ..passes.rewrite import joined_values
from .quantizer import PLAIN, Quantizing
from .weights_plan import PackedWeight, operations_of

_WEIGHTS_AT_ONCE = 1 << 24
"""What is packed is so some rows at a time: on the way it takes several times its memory, and experts of a layer are one matrix."""


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
    if loaded.format in QUANTIZED_FORMATS:
        _check_blocks(loaded.format, loaded.data, _tensors(checkpoint, source))
    packs = next((operation for operation in ("pack", "pack_rows") if operation in recipe), None)
    if packs is None:
        return _made(source, recipe, loaded, 0, checkpoint, quantizing)
    rows, columns = checkpoint.parameters[source].shape
    count = max(_WEIGHTS_AT_ONCE // columns // PANEL, 1) * PANEL
    together = PANEL if packs == "pack" else 1
    made: list[torch.Tensor] = []
    for first in range(0, rows, count):
        some = _made(source, recipe, replace(loaded, data=loaded.data[first : first + count]), first, checkpoint, quantizing)
        if count >= rows:
            return some
        made = made or [some.new_empty(-(-rows // together), *some.shape[1:])]
        made[0][first // together : first // together + len(some)] = some
    return made[0]


def _made(
    source: str, recipe: Sequence[str], loaded: LoadedTensor, first: int, checkpoint: Checkpoint, quantizing: Quantizing
) -> torch.Tensor:
    """What the operations make of rows of a source, of which `first` is the first."""
    data, held = loaded.data, loaded.format
    values = partial(values_of, order=loaded.order)
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
                data = _quantize(wanted, floats, tensor, first, quantizing.importance.get(source), quantizing.fit)
                held = wanted
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


def _quantize(wanted: str, values: torch.Tensor, tensor: str, first: int, importance: torch.Tensor | None, fit: Fit) -> torch.Tensor:
    """values: float32 [N, K]. tensor: what the checkpoint calls them; first: their first row there. importance: of input channels, [K]."""
    finite = values.isfinite()
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        raise CheckpointError(
            f"tensor {tensor} cannot be quantized: row {first + row}, column {column} is {values[row, column].item()}",
            hint="the checkpoint is damaged, or its training diverged; without --quantize it is built as it is",
        )
    try:
        return fp8.quantize_fp8(wanted, values) if wanted in FP8_FORMATS else quantize_blocks(wanted, values, importance, fit)
    except ValueError as error:
        raise CheckpointError(
            f"tensor {tensor} cannot be quantized: values up to {values.abs().max().item():g} are beyond what {wanted} holds",
            hint="build without --quantize",
        ) from error

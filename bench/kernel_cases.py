"""The operators as they are called alone: with inputs of a shape, and what that must move and multiply.

Inputs rotate, call by call, over copies that together exceed the last cache: a forward reads
each weight once, so what a kernel finds in a cache would flatter it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..artifacts import CacheGroup, Manifest, WeightInfo
from ..kernels.attention.op import attention, latent_attention
from ..kernels.attention.options import AttentionOptions
from ..kernels.linear import activations_for
from ..kernels.linear.bands import is_mixed, read_bands
from ..kernels.linear.blocks import FORMATS
from ..kernels.linear.formats import PANEL, pack_dense
from ..kernels.linear.packed import DENSE_DTYPES, in_features_of_panels, kernel_of, packed_shape
from .limits import last_cache_bytes

_LEAST_ROTATION = 128 << 20
_MOST_COPIES = 1024
_PEAKS: dict[str, Literal["int8", "bfloat16", "float32"]] = {"dense": "float32", "bf16": "bfloat16"}
_KV_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel on one shape. call(i) runs it on copy i of `copies`; bytes and macs are those of a call.

    rows: new tokens per call. peak: which multiplications it is made of.
    """

    kernel: str
    shape: str
    rows: int
    call: Callable[[int], Tensor]
    copies: int
    bytes: int
    macs: int
    peak: Literal["int8", "bfloat16", "float32"]


@dataclass(frozen=True, order=True)
class LinearShape:
    """A linear layer: storage format, outputs, inputs."""

    format: str
    outputs: int
    inputs: int


def linear_shapes(manifest: Manifest) -> list[LinearShape]:
    """The distinct matrices of an artifact, with outputs and inputs rounded up as they are packed."""
    shapes = set()
    for weight in manifest.weights.values():
        if len(weight.shape) >= 3 or is_mixed(weight.format):
            inputs = in_features_of_panels(weight.format, weight.shape)
            shape = LinearShape(weight.format, _outputs(weight), inputs)
            assert packed_shape(shape.format, shape.outputs, shape.inputs) == tuple(weight.shape), "weights are packed in another way"
            shapes.add(shape)
    return sorted(shapes)


def _outputs(weight: WeightInfo) -> int:
    return sum(band.out_features for band in read_bands(weight.format)) if is_mixed(weight.format) else weight.shape[0] * PANEL


def compared(outputs: int, inputs: int) -> list[LinearShape]:
    """A linear layer in every format that has blocks of which its inputs are a multiple."""
    dense = [LinearShape(format, outputs, inputs) for format in ("f32", "bf16")]
    return [*(LinearShape(name, outputs, inputs) for name, spec in FORMATS.items() if inputs % spec.block == 0), *dense]


def linear_cases(shape: LinearShape, rows: tuple[int, ...]) -> Iterator[Case]:
    """The linear kernel of the shape's format; activations are quantized or rounded for it before.

    Numbers of rows that no step asks a matrix for are left out: the head is for sampled rows only.
    """
    weights = _copies(_weight(shape))
    kernel = kernel_of(shape.format)
    for count in rows:
        x = torch.randn(count, shape.inputs)
        given = activations_for(kernel, x)
        yield Case(
            kernel=f"linear {shape.format}",
            shape=f"{shape.outputs}x{shape.inputs}",
            rows=count,
            call=_linear_call(shape, given, weights),
            copies=len(weights),
            bytes=weights[0].nbytes + given.nbytes + 4 * count * shape.outputs,
            macs=count * shape.outputs * shape.inputs,
            peak=_PEAKS.get(kernel, "int8"),
        )


_STEPS = ((1, 2048, 1), (8, 512, 1), (1, 2048, 512))
"""Sequences, their tokens, how many of them are computed: decode of one and of eight, and the last chunk of a long prompt."""


def attention_cases(cache: CacheGroup, query_heads: int) -> Iterator[Case]:
    for batch, context, new in _STEPS:
        yield _attention_case(cache, query_heads, batch, context, new)


def latent_cases(cache: CacheGroup, heads: int, rank: int) -> Iterator[Case]:
    for batch, context, new in _STEPS:
        yield _latent_case(cache, heads, rank, batch, context, new)


def heads_and_rank(manifest: Manifest, layer: int) -> tuple[int, int]:
    """Of a layer with latent attention: how many heads it has, and of how many elements what makes their values is."""
    keys, values = (manifest.weights[f"layers.{layer}.attention.{part}_up.weight"] for part in ("key", "value"))
    rank = in_features_of_panels(values.format, values.shape)
    return _outputs(keys) // rank, rank


def _linear_call(shape: LinearShape, x: Tensor, weights: Sequence[Tensor]) -> Callable[[int], Tensor]:
    """Nothing else here knows the operators' signatures."""
    operator = getattr(torch.ops.engine, f"linear_{kernel_of(shape.format)}").default
    outputs = shape.format if is_mixed(shape.format) else shape.outputs
    return lambda index: operator(x, weights[index], None, None, outputs, 1.0)


def _weight(shape: LinearShape) -> Tensor:
    """A packed weight of random numbers."""
    if shape.format in DENSE_DTYPES:
        return pack_dense(torch.randn(shape.outputs, shape.inputs).to(DENSE_DTYPES[shape.format]))
    # Bytes of which no two are a float16 that is large.
    return torch.randint(0, 0x3C, packed_shape(shape.format, shape.outputs, shape.inputs), dtype=torch.uint8)


def _copies(tensor: Tensor) -> Sequence[Tensor]:
    """Together larger than the last cache, but for what is so small that calling it takes longer than reading it."""
    count = math.ceil(max(_LEAST_ROTATION, 4 * last_cache_bytes()) / tensor.nbytes)
    return tensor.expand(min(count, _MOST_COPIES), *tensor.shape).contiguous().unbind()


def _filled(cache: CacheGroup, batch: int, context: int, new: int) -> tuple[Sequence[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Copies of a cache with `batch` sequences of `context` tokens, and what tells where these and the `new` of each lie."""
    size, dtype = cache.block_size, _KV_DTYPES[cache.dtype]
    per_sequence = -(-context // size)
    # Of int8, bytes of which no four are a scale that is large or next to nothing.
    shape = (batch * per_sequence, cache.num_kv_heads, size, cache.row_elements)
    copies = _copies(torch.randint(0x20, 0x3C, shape, dtype=dtype) if dtype == torch.int8 else torch.randn(shape).to(dtype))
    table = torch.randperm(batch * per_sequence).to(torch.int32).view(batch, per_sequence)
    positions = torch.arange(context - new, context)
    slots = (table[:, positions // size] * size + positions % size).flatten().to(torch.int32)
    starts = torch.arange(0, batch * new + 1, new, dtype=torch.int32)
    return copies, (starts, torch.full((batch,), context, dtype=torch.int32), table, slots)


def _attention_case(cache: CacheGroup, query_heads: int, batch: int, context: int, new: int) -> Case:
    heads, dim, dtype = cache.num_kv_heads, cache.head_dim, _KV_DTYPES[cache.dtype]
    keys, where = _filled(cache, batch, context, new)
    values = _copies(keys[0])
    q, k, v = (torch.randn(batch * new, count, dim) for count in (query_heads, heads, heads))
    options = AttentionOptions(scale=dim**-0.5)
    seen = batch * sum(range(context - new + 1, context + 1))
    return Case(
        kernel=f"attention {cache.dtype}",
        shape=f"{query_heads}x{heads}x{dim}, {batch} of {context:,}",
        rows=batch * new,
        call=lambda index: attention(q, k, v, keys[index], values[index], *where, options),
        copies=len(keys),
        bytes=2 * batch * context * heads * cache.row_elements * dtype.itemsize + 2 * q.nbytes + 2 * k.nbytes,
        macs=2 * seen * query_heads * dim,
        peak="float32",
    )


def _latent_case(cache: CacheGroup, heads: int, rank: int, batch: int, context: int, new: int) -> Case:
    kept, where = _filled(cache, batch, context, new)
    width, tokens = cache.head_dim, batch * new
    q, turned, latents = torch.randn(heads, tokens, rank), torch.randn(tokens, heads, width - rank), torch.randn(tokens, width)
    seen = batch * sum(range(context - new + 1, context + 1))
    return Case(
        kernel=f"latent attention {cache.dtype}",
        shape=f"{heads}x{rank}+{width - rank}, {batch} of {context:,}",
        rows=tokens,
        call=lambda index: latent_attention(q, turned, latents, kept[index], *where, width**-0.5),
        copies=len(kept),
        bytes=batch * context * cache.row_elements * _KV_DTYPES[cache.dtype].itemsize + 2 * q.nbytes + turned.nbytes + latents.nbytes,
        macs=seen * heads * (width + rank),
        peak="float32",
    )

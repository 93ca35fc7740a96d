"""What the operators compute, in plain PyTorch and the dtype of `x` or `q`.

Called with float64 this is the exact answer. What the kernels do is this in float32 on bfloat16
inputs, rounded once at the result; linears round quantized weights to bfloat16, and attention what
it writes to the cache, normalized and rotated queries, and the weights of the values.
"""

import itertools
from typing import Any

import torch
from torch import Tensor

from ..attention.options import AttentionOptions
from ..attention.reference import hidden_keys, prepared, scaled, soft_cap, softmax
from ..cut_operators import ATTENTION
from .formats import unpack_rows
from .fp8 import quantize_fp8, unpack_fp8
from .packed_rows import FP8_LAYOUTS, fp8_in_features

__all__ = [
    "attention",
    "attention_operator",
    "embedding_rows",
    "experts_rows",
    "latent_attention",
    "linear",
    "linear_rows",
    "logits_rows",
    "quantize_fp8",
    "sample",
]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, multiplier: float = 1.0) -> Tensor:
    """x [T, K] times weight [N, K], plus bias [N], times multiplier, plus residual [T, N] -> [T, N], all in the dtype of x."""
    out = x @ weight.to(x.dtype).T
    out = (out if bias is None else out + bias.to(x.dtype)) * multiplier
    return out if residual is None else out + residual.to(x.dtype)


def linear_rows(
    kernel: str, x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, out_features: int, multiplier: float
) -> Tensor:
    """The operators linear_rows_*: w packed for `kernel`, "dense" or a format of formats.py -> [T, out_features] in the dtype of x.

    Of bfloat16 x, the product is one in float32, rounded once; float32 weights are multiplied as they are. Of FP8 formats x is FP8 rows
    too, and the result bfloat16.
    """
    return logits_rows(kernel, x, w, bias, residual, out_features, multiplier).to(torch.bfloat16 if x.dtype == torch.uint8 else x.dtype)


def logits_rows(
    kernel: str, x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, out_features: int, multiplier: float
) -> Tensor:
    """The operators logits_rows_*: as linear_rows, but of bfloat16 or FP8 x the result is float32."""
    if kernel in FP8_LAYOUTS:
        in_features = fp8_in_features(kernel, w.shape[1])
        return linear(unpack_fp8(kernel, x, in_features), unpack_fp8(kernel, w, in_features)[:out_features], bias, residual, multiplier)
    wide = x.float() if x.dtype == torch.bfloat16 else x
    weight = unpack_rows(kernel, w, x.shape[1])
    if x.dtype == torch.bfloat16 and w.dtype != torch.float32:
        weight = weight.bfloat16()
    return linear(wide, weight[:out_features], bias, residual, multiplier)


def experts_rows(
    kernel: str, x: Tensor, w: Tensor, bias: Tensor | None, order: Tensor, out_features: int, experts: int, parts: int, gather: bool
) -> Tensor:
    """The operators experts_rows_*: of each pair the product with the weights of its expert, [P, out_features], as of logits_rows."""
    pairs, features = (len(order) - experts - 1) // 2, out_features // parts
    rows = x[order[experts + 1 : experts + 1 + pairs].long()] if gather else x
    weights = w.unflatten(0, (parts, experts, features))
    biases = None if bias is None else bias.unflatten(0, (parts, experts, features))
    out = torch.empty(pairs, out_features, dtype=torch.float32 if x.dtype in (torch.uint8, torch.bfloat16) else x.dtype)
    for expert, (begin, end) in enumerate(itertools.pairwise(order[: experts + 1].tolist())):
        for part in range(parts):
            added = None if biases is None else biases[part, expert]
            columns = slice(part * features, (part + 1) * features)
            out[begin:end, columns] = logits_rows(kernel, rows[begin:end], weights[part, expert], added, None, features, 1.0)
    return out


def embedding_rows(kernel: str, tokens: Tensor, w: Tensor, dim: int, multiplier: float) -> Tensor:
    """tokens [T] int32, w as of linear_rows -> rows [T, dim] float32, times multiplier.

    Ids outside the vocabulary mean its first or last row.
    """
    return unpack_rows(kernel, w[tokens.long().clamp(0, len(w) - 1)], dim) * multiplier


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor) -> Tensor:
    """As sample.sample: logits [S, V] and parameters [S] -> tokens [S] int32."""
    rows = zip(logits, *(x.tolist() for x in (temperature, top_k, top_p, min_p, uniform)), strict=True)
    return torch.tensor([_sample_row(*row) for row in rows], dtype=torch.int32)


def _sample_row(row: Tensor, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    if not row.max().isfinite():
        return -1
    if temperature == 0:
        return int((row == row.max()).int().argmax())
    weights = ((row - row.max()) / temperature).exp()
    order = weights.sort(descending=True, stable=True).indices
    order = order[weights[order] >= min_p]
    if top_k > 0:
        order = order[:top_k]
    if top_p < 1:
        cumulative = weights[order].cumsum(0)
        order = order[: int((cumulative < top_p * cumulative[-1]).sum()) + 1]
    kept = torch.zeros_like(weights)
    kept[order] = weights[order]
    cumulative = kept.cumsum(0)
    return int((cumulative > uniform * cumulative[-1]).int().argmax())


def write_cache(x: Tensor, cache: Tensor, slot_mapping: Tensor) -> None:
    """x [T, KH, D] into cache [blocks, KH, block_size, D] at slot_mapping [T]; a negative slot writes nothing."""
    written = slot_mapping >= 0
    at = slot_mapping[written].long()
    cache[at // cache.shape[2], :, at % cache.shape[2]] = x[written].to(cache.dtype)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    slot_mapping: Tensor,
    options: AttentionOptions,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    sinks: Tensor | None = None,
    q_scale: Tensor | None = None,
) -> Tensor:
    """As the emitter in attention.py: writes the caches, returns [T, QH, D]. Tokens of no sequence get zeros."""
    q = scaled(prepared(q.to(_wide(q)), q_norm, cos, sin, options), q_scale).to(q.dtype)
    k = prepared(k.to(_wide(k)), k_norm, cos, sin, options).to(k.dtype)
    write_cache(k, k_cache, slot_mapping)
    write_cache(v, v_cache, slot_mapping)
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    starts = cu_seqlens.tolist()
    for sequence, length in enumerate(seq_lens.tolist()):
        first, last = starts[sequence], starts[sequence + 1]
        if length:
            keys, values = (_of_sequence(cache, block_table[sequence], length).to(q.dtype) for cache in (k_cache, v_cache))
            out[first:last] = _attend(q[first:last], keys, values, sinks, options)
    return out


def attention_operator(*arguments: Any) -> Tensor:
    """`attention` with the arguments of the operator's schema, in its order."""
    named = ATTENTION.named(arguments)
    return attention(options=AttentionOptions.take(named), **named)


def latent_attention(
    q: Tensor,
    q_rope: Tensor,
    latents: Tensor,
    cache: Tensor,
    cu_seqlens: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    slot_mapping: Tensor,
    scale: float,
) -> Tensor:
    """As the emitter in latent_attention.py, with the arguments of the operator's schema: writes the cache, returns [QH, T, L].

    Tokens of no sequence get zeros.
    """
    write_cache(latents[:, None], cache, slot_mapping)
    queries = torch.cat((q.transpose(0, 1), q_rope), dim=2)
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    starts = cu_seqlens.tolist()
    for sequence, length in enumerate(seq_lens.tolist()):
        first, last = starts[sequence], starts[sequence + 1]
        if length:
            keys = _of_sequence(cache, block_table[sequence], length).to(q.dtype)
            attended = _attend(queries[first:last], keys, keys[..., : q.shape[2]], None, AttentionOptions(scale=scale))
            out[:, first:last] = attended.transpose(0, 1)
    return out


def _wide(x: Tensor) -> torch.dtype:
    """In what kernels compute: float32 of bfloat16."""
    return torch.float32 if x.dtype == torch.bfloat16 else x.dtype


def _of_sequence(cache: Tensor, blocks: Tensor, length: int) -> Tensor:
    """[length, KH, D]"""
    used = blocks[: -(-length // cache.shape[2])].long()
    return cache[used].transpose(1, 2).flatten(0, 1)[:length]


def _attend(q: Tensor, keys: Tensor, values: Tensor, sinks: Tensor | None, options: AttentionOptions) -> Tensor:
    """q [Q, QH, D], the last Q of a sequence whose keys and values are [L, KH, D]."""
    keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (keys, values))
    scores = soft_cap(torch.einsum("thd,lhd->htl", q, keys) * options.scale, options.softcap)
    weights = softmax(scores.masked_fill(hidden_keys(len(q), len(keys), options), -torch.inf), sinks)
    return torch.einsum("htl,lhd->thd", weights, values)

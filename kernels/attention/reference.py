"""What the attention operators compute, in plain PyTorch, one sequence at a time.

Each function works in the dtype of its queries: called with float64 it is the exact answer,
with float32 it rounds where the kernels round, but for the order of sums.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..cut_operators import ATTENTION, BIDIRECTIONAL_ATTENTION
from .options import AttentionOptions

SCALE_BYTES = 4
"""What an int8 key or value takes beside its quants: a float32 scale."""
SMALLEST_AMAX = 2.0**-100


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D] float32 -> quants [..., D] int8 and scales [...] float32, x = scale * quant up to half a scale.

    scale = amax / 127 and quant = x * (127 / amax), rounded to even. A row that is all but zero
    is zero, and one that is not finite gets the scale NaN.
    """
    amax = x.abs().amax(-1)
    usable = amax.isfinite() & (amax >= SMALLEST_AMAX)
    quants = torch.where(usable[..., None], (x * (127 / amax)[..., None]).round(), 0.0).to(torch.int8)
    return quants, torch.where(usable, amax / 127, torch.where(amax < SMALLEST_AMAX, 0.0, torch.nan))


def as_float16(x: Tensor) -> Tensor:
    """x in float16, to the nearest, ties to even; finite numbers stay finite: the largest is 65504."""
    largest = torch.finfo(torch.float16).max
    return torch.where(x.isfinite(), x.clamp(-largest, largest), x).half()


def _together(dtype: torch.dtype) -> int:
    """Elements that lie side by side in the cache because they are multiplied by one instruction."""
    return 2 if dtype == torch.bfloat16 else 1


def _key_places(head_dim: int, block_size: int, dtype: torch.dtype) -> Tensor:
    """Where in a block each element of each key lies, [D, block_size]: transposed, [D / 2, block_size, 2] for bfloat16."""
    n = _together(dtype)
    places = torch.arange(head_dim * block_size).view(head_dim // n, block_size, n)
    return places.transpose(1, 2).reshape(head_dim, block_size)


def _value_places(head_dim: int, block_size: int, dtype: torch.dtype) -> Tensor:
    """Of values, [D, block_size]: they lie as [block_size, D], or [block_size / 2, D, 2] for bfloat16."""
    n = _together(dtype)
    places = torch.arange(head_dim * block_size).view(block_size // n, head_dim, n)
    return places.permute(1, 0, 2).reshape(head_dim, block_size)


Places = Callable[[int, int, torch.dtype], Tensor]


def _scales(blocks: Tensor, count: int) -> Tensor:
    """The scales [..., block_size] that follow `count` elements in blocks [..., count + scales] of int8."""
    return blocks[..., count:].view(torch.float32)


def _encoded(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Keys or values as a cache of `dtype` holds them, and the scales of those in int8."""
    match dtype:
        case torch.int8:
            return quantize(x.float())
        case torch.float16:
            return as_float16(x), None
        case _:
            return x.to(dtype), None


def write_cache(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Put k [T, KH, D] and v [T, KH, V] into the caches at `slot_mapping` [T]; a negative slot writes nothing.

    Values have zeros behind them, up to D. In int8 caches [blocks, KH, block_size, D + 4], the block's float32 scales [block_size] follow
    its quants.
    """
    write_keys(k, k_cache, slot_mapping)
    _write(pad(v, (0, k.shape[2] - v.shape[2])), v_cache, slot_mapping, _value_places)


def write_keys(k: Tensor, cache: Tensor, slot_mapping: Tensor) -> None:
    """Put k alone there; of latents, [T, 1, L + R], there is nothing else."""
    _write(k, cache, slot_mapping, _key_places)


def _write(x: Tensor, cache: Tensor, slot_mapping: Tensor, places: Places) -> None:
    block_size = cache.shape[2]
    at = places(x.shape[2], block_size, cache.dtype)
    flat = cache.view(*cache.shape[:2], -1)
    rows, row_scales = _encoded(x, cache.dtype)
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            block, offset = divmod(slot, block_size)
            flat[block, :, at[:, offset]] = rows[token]
            if row_scales is not None:
                _scales(flat, at.numel())[block, :, offset] = row_scales[token]


def read_cache(k_cache: Tensor, v_cache: Tensor, blocks: Tensor, length: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Keys and values [length, KH, D] of the sequence that lies in `blocks`; int8 ones as the float32 they stand for."""
    return read_keys(k_cache, blocks, length, head_dim), _read_rows(v_cache, blocks, length, head_dim, _value_places)


def read_keys(cache: Tensor, blocks: Tensor, length: int, head_dim: int) -> Tensor:
    """Its keys alone."""
    return _read_rows(cache, blocks, length, head_dim, _key_places)


def _read_rows(cache: Tensor, blocks: Tensor, length: int, head_dim: int, places: Places) -> Tensor:
    found = _read(cache, blocks.long(), places(head_dim, cache.shape[2], cache.dtype))
    return found.permute(0, 3, 1, 2).flatten(0, 1)[:length]


def _read(cache: Tensor, blocks: Tensor, places: Tensor) -> Tensor:
    """[blocks, KH, D, block_size]"""
    found = cache[blocks].flatten(2)
    elements = found[..., places]
    return elements * _scales(found, places.numel())[:, :, None] if cache.dtype == torch.int8 else elements


def as_multiplied(x: Tensor, cache: Tensor) -> Tensor:
    """Queries or weights as the kernels multiply them with this cache: bfloat16 with bfloat16."""
    return x.bfloat16().to(x.dtype) if x.dtype == torch.float32 and cache.dtype == torch.bfloat16 else x


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (i, i + R / 2) of the first R elements of x [T, heads, D], turned by the angles of cos and sin [T, R / 2]; the others pass."""
    width = 2 * cos.shape[1]
    a, b = x[..., :width].chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, x[..., width:]), dim=-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, heads, D] over its root mean square, times weight [D]."""
    return weight * (x * (1 / (x.square().mean(-1, keepdim=True) + eps).sqrt()))


def prepared(x: Tensor, norm: Tensor | None, cos: Tensor | None, sin: Tensor | None, options: AttentionOptions) -> Tensor:
    """Queries or keys [T, heads, D] as attention takes them: normalized with weights `norm` [D] and rotated, in the order of `options`."""
    if norm is not None and not options.norm_after_rope:
        x = rms_norm(x, norm, options.eps)
    if cos is not None and sin is not None:
        x = rotate(x, cos, sin)
    if norm is not None and options.norm_after_rope:
        x = rms_norm(x, norm, options.eps)
    return x


def scaled(q: Tensor, q_scale: Tensor | None) -> Tensor:
    """q [T, heads, D], each token's times its number of q_scale [T]."""
    return q if q_scale is None else q * q_scale[:, None, None]


def hidden_keys(new: int, length: int, options: AttentionOptions) -> Tensor:
    """Which of a sequence's `length` keys its last `new` queries do not see, [new, length] bool."""
    positions, keys = torch.arange(length - new, length)[:, None], torch.arange(length)
    hidden = keys > positions
    if options.window > 0:
        hidden |= keys <= positions - options.window
    if options.chunk > 0:
        hidden |= keys < positions // options.chunk * options.chunk
    return hidden


def far_keys(length: int, options: AttentionOptions) -> Tensor:
    """Which of a sequence's keys are hidden from its queries by the window alone, [length, length] bool."""
    positions = torch.arange(length)
    distances = (positions[:, None] - positions).abs()
    return distances >= options.window if options.window > 0 else torch.zeros_like(distances, dtype=torch.bool)


def soft_cap(scores: Tensor, cap: float) -> Tensor:
    """Scores drawn softly between -cap and cap; as they are where the cap is 0."""
    return cap * (scores / cap).tanh() if cap > 0 else scores


def softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Weights of scores [QH, T, L]. Each row is a softmax over its scores and its head's sink [QH], whose weight is left out."""
    if sinks is None:
        return scores.softmax(dim=2)
    column = sinks.to(scores.dtype)[:, None, None].expand(-1, scores.shape[1], 1)
    return torch.cat((scores, column), dim=2).softmax(dim=2)[:, :, :-1]


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
    """As `op.attention`, with norms and rotation inside where they are given."""
    q = scaled(prepared(q, q_norm, cos, sin, options), q_scale) * options.scale
    write_cache(prepared(k, k_norm, cos, sin, options), v, k_cache, v_cache, slot_mapping)
    out = q.new_zeros(*q.shape[:2], v.shape[2])
    sharing = q.shape[1] // k_cache.shape[1]
    starts = cu_seqlens.tolist()
    for sequence, length in enumerate(seq_lens.tolist()):
        keys, values = read_cache(k_cache, v_cache, block_table[sequence], length, q.shape[2])
        first, last = starts[sequence], starts[sequence + 1]
        keys = keys.to(q.dtype).repeat_interleave(sharing, dim=1)
        values = values[..., : v.shape[2]].to(q.dtype).repeat_interleave(sharing, dim=1)
        scores = soft_cap(torch.einsum("thd,lhd->htl", as_multiplied(q[first:last], k_cache), keys), options.softcap)
        weights = softmax(scores.masked_fill(hidden_keys(last - first, length, options), -torch.inf), sinks)
        out[first:last] = torch.einsum("htl,lhd->thd", as_multiplied(weights, v_cache), values)
    return out


def bidirectional_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    options: AttentionOptions,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    sinks: Tensor | None = None,
    q_scale: Tensor | None = None,
) -> Tensor:
    """As `op.bidirectional_attention`, with norms and rotation inside where they are given."""
    q = scaled(prepared(q, q_norm, cos, sin, options), q_scale) * options.scale
    k = prepared(k, k_norm, cos, sin, options)
    return _within_texts(q, k, v, cu_seqlens, options, sinks, far_keys)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, options: AttentionOptions, *, sinks: Tensor | None) -> Tensor:
    """What `attention` gives for sequences that are there as a whole, without caches."""
    return _within_texts(q * options.scale, k, v, cu_seqlens, options, sinks, lambda length, options: hidden_keys(length, length, options))


def _within_texts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    options: AttentionOptions,
    sinks: Tensor | None,
    hidden: Callable[[int, AttentionOptions], Tensor],
) -> Tensor:
    """hidden: which keys of a text of so many tokens each of its queries does not see."""
    out = q.new_zeros(*q.shape[:2], v.shape[2])
    sharing = q.shape[1] // k.shape[1]
    for first, last in pairwise(cu_seqlens.tolist()):
        keys, values = (x[first:last].to(q.dtype).repeat_interleave(sharing, dim=1) for x in (k, v))
        scores = soft_cap(torch.einsum("thd,lhd->htl", q[first:last], keys), options.softcap)
        weights = softmax(scores.masked_fill(hidden(last - first, options), -torch.inf), sinks)
        out[first:last] = torch.einsum("htl,lhd->thd", weights, values)
    return out


def attention_operator(*arguments: Any) -> Tensor:
    """`attention` with the arguments of the operator's schema, in its order."""
    named = ATTENTION.named(arguments)
    return attention(options=AttentionOptions.take(named), **named)


def bidirectional_attention_operator(*arguments: Any) -> Tensor:
    """`bidirectional_attention`, likewise."""
    named = BIDIRECTIONAL_ATTENTION.named(arguments)
    return bidirectional_attention(options=AttentionOptions.take(named), **named)

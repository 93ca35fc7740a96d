"""What the attention operators compute, in plain PyTorch, one sequence at a time.

Each function works in the dtype of its queries: called with float64 it is the exact answer,
with float32 it rounds where the kernels round, but for the order of sums.
"""

import torch
from torch import Tensor

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


def _scales(blocks: Tensor, count: int) -> Tensor:
    """The scales [..., block_size] that follow `count` elements in blocks [..., count + scales] of int8."""
    return blocks[..., count:].view(torch.float32)


def write_cache(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Put k and v [T, KH, D] into the caches at `slots` [T]; a negative slot writes nothing.

    In int8 caches [blocks, KH, block_size, D + 4], the block's float32 scales [block_size] follow its quants.
    """
    head_dim, block_size = k.shape[2], k_cache.shape[2]
    for x, cache, places in ((k, k_cache, _key_places), (v, v_cache, _value_places)):
        at = places(head_dim, block_size, cache.dtype)
        flat = cache.view(*cache.shape[:2], -1)
        rows, row_scales = quantize(x.float()) if cache.dtype == torch.int8 else (x.to(cache.dtype), None)
        for token, slot in enumerate(slots.tolist()):
            if slot >= 0:
                block, offset = divmod(slot, block_size)
                flat[block, :, at[:, offset]] = rows[token]
                if row_scales is not None:
                    _scales(flat, at.numel())[block, :, offset] = row_scales[token]


def read_cache(k_cache: Tensor, v_cache: Tensor, blocks: Tensor, length: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Keys and values [length, KH, D] of the sequence that lies in `blocks`; int8 ones as the float32 they stand for."""
    keys, values = (
        _read(cache, blocks.long(), places(head_dim, cache.shape[2], cache.dtype)).permute(0, 3, 1, 2).flatten(0, 1)[:length]
        for cache, places in ((k_cache, _key_places), (v_cache, _value_places))
    )
    return keys, values


def _read(cache: Tensor, blocks: Tensor, places: Tensor) -> Tensor:
    """[blocks, KH, D, block_size]"""
    found = cache[blocks].flatten(2)
    elements = found[..., places]
    return elements * _scales(found, places.numel())[:, :, None] if cache.dtype == torch.int8 else elements


def _as_multiplied(x: Tensor, cache: Tensor) -> Tensor:
    """Queries or weights as the kernels multiply them with this cache: bfloat16 with bfloat16."""
    return x.bfloat16().to(x.dtype) if x.dtype == torch.float32 and cache.dtype == torch.bfloat16 else x


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (i, i + D / 2) of x [T, heads, D], turned by the angles of cos and sin [T, D / 2]."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, heads, D] over its root mean square, times weight [D]."""
    return weight * (x * (1 / (x.square().mean(-1, keepdim=True) + eps).sqrt()))


def soft_cap(scores: Tensor, cap: float) -> Tensor:
    """Scores drawn softly between -cap and cap; as they are where the cap is 0."""
    return cap * (scores / cap).tanh() if cap > 0 else scores


def softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Weights of scores [QH, T, L]. Each row is a softmax over its scores and its head's sink [QH], whose weight is left out."""
    if sinks is None:
        return scores.softmax(dim=2)
    column = sinks.to(scores.dtype)[:, None, None].expand(-1, scores.shape[1], 1)
    return torch.cat((scores, column), dim=2).softmax(dim=2)[:, :, :-1]


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    slots: Tensor,
    sinks: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """As `op.paged_attention`."""
    write_cache(k, v, k_cache, v_cache, slots)
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    sharing = q.shape[1] // k_cache.shape[1]
    starts = query_start.tolist()
    for sequence, length in enumerate(seq_lens.tolist()):
        keys, values = read_cache(k_cache, v_cache, block_table[sequence], length, q.shape[2])
        first, last = starts[sequence], starts[sequence + 1]
        keys = keys.to(q.dtype).repeat_interleave(sharing, dim=1)
        values = values.to(q.dtype).repeat_interleave(sharing, dim=1)
        distance = torch.arange(length - (last - first), length)[:, None] - torch.arange(length)
        hidden = (distance < 0) | ((distance >= window) if window > 0 else False)
        scores = torch.einsum("thd,lhd->htl", _as_multiplied(q[first:last] * scale, k_cache), keys)
        weights = softmax(soft_cap(scores, softcap).masked_fill(hidden, -torch.inf), sinks)
        out[first:last] = torch.einsum("htl,lhd->thd", _as_multiplied(weights, v_cache), values)
    return out


def rope_paged_attention(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, *rest: object) -> Tensor:
    """`paged_attention` of the rotated q and k. cos, sin: [T, D / 2]; rest: the caches and what follows."""
    return paged_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, *rest)  # type: ignore[arg-type]


def norm_paged_attention(q: Tensor, k: Tensor, v: Tensor, q_norm: Tensor, k_norm: Tensor, *rest: object) -> Tensor:
    """`paged_attention` of the normalized q and k. q_norm, k_norm: weights [D]; rest: the caches and what follows, then eps."""
    *others, eps = rest
    return paged_attention(rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps), v, *others)  # type: ignore[arg-type]


def norm_rope_paged_attention(q: Tensor, k: Tensor, v: Tensor, q_norm: Tensor, k_norm: Tensor, *rest: object) -> Tensor:
    """`rope_paged_attention` of the normalized q and k. rest: cos, sin, the caches and what follows, then eps."""
    *others, eps = rest
    return rope_paged_attention(rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps), v, *others)  # type: ignore[arg-type]

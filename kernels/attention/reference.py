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


def _areas(cache: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    """Every block's elements, [blocks, KH, *shape], and behind them its scales, [blocks, KH, block_size]; empty but for int8."""
    flat = cache.view(*cache.shape[:2], -1)
    count = shape[0] * shape[1]
    return flat[..., :count].unflatten(2, shape), flat[..., count:].view(torch.float32)


def _key_areas(cache: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Keys as [blocks, KH, D, block_size], which is how they lie, and their scales."""
    return _areas(cache, head_dim, cache.shape[2])


def _value_areas(cache: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Values as [blocks, KH, D, block_size], though they lie as [block_size, D], and their scales."""
    elements, scales = _areas(cache, cache.shape[2], head_dim)
    return elements.transpose(2, 3), scales


def write_cache(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Put k and v [T, KH, D] into the caches at `slots` [T]; a negative slot writes nothing.

    Inside a block of k_cache, keys lie transposed: [D, block_size]; of v_cache, values [block_size, D].
    In int8 caches [blocks, KH, block_size, D + 4], the block's float32 scales [block_size] follow.
    """
    head_dim, block_size = k.shape[2], k_cache.shape[2]
    for x, cache, (elements, scales) in ((k, k_cache, _key_areas(k_cache, head_dim)), (v, v_cache, _value_areas(v_cache, head_dim))):
        rows, row_scales = quantize(x.float()) if cache.dtype == torch.int8 else (x.to(cache.dtype), None)
        for token, slot in enumerate(slots.tolist()):
            if slot >= 0:
                block, offset = divmod(slot, block_size)
                elements[block, ..., offset] = rows[token]
                if row_scales is not None:
                    scales[block, :, offset] = row_scales[token]


def read_cache(k_cache: Tensor, v_cache: Tensor, blocks: Tensor, length: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Keys and values [length, KH, D] of the sequence that lies in `blocks`; int8 ones as the float32 they stand for."""
    keys, values = (
        _read(areas, blocks.long()).permute(0, 3, 1, 2).flatten(0, 1)[:length]
        for areas in (_key_areas(k_cache, head_dim), _value_areas(v_cache, head_dim))
    )
    return keys, values


def _read(areas: tuple[Tensor, Tensor], blocks: Tensor) -> Tensor:
    elements, scales = (area[blocks] for area in areas)
    return elements * scales[:, :, None] if elements.dtype == torch.int8 else elements


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (i, i + D / 2) of x [T, heads, D], turned by the angles of cos and sin [T, D / 2]."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, heads, D] over its root mean square, times weight [D]."""
    return weight * (x * (1 / (x.square().mean(-1, keepdim=True) + eps).sqrt()))


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
    scale: float,
    window: int,
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
        scores = torch.einsum("thd,lhd->htl", q[first:last], keys) * scale
        weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=2)
        out[first:last] = torch.einsum("htl,lhd->thd", weights, values)
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

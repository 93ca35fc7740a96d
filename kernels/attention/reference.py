"""What the paged attention operator computes, in plain PyTorch, one sequence at a time."""

import torch
from torch import Tensor


def write_cache(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Put k and v [T, KH, D] into the caches at `slots` [T]; a negative slot writes nothing.

    Inside a block of k_cache, keys lie transposed: [D, block_size].
    """
    block_size = k_cache.shape[2]
    keys = k_cache.view(*k_cache.shape[:2], k_cache.shape[3], block_size)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            block, offset = divmod(slot, block_size)
            keys[block, :, :, offset] = k[token].to(k_cache.dtype)
            v_cache[block, :, offset] = v[token].to(v_cache.dtype)


def read_cache(k_cache: Tensor, v_cache: Tensor, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Keys and values [length, KH, D] of the sequence that lies in `blocks`, in the caches' dtype."""
    keys = k_cache.view(*k_cache.shape[:2], k_cache.shape[3], k_cache.shape[2])[blocks.long()]
    values = v_cache[blocks.long()]
    return keys.permute(0, 3, 1, 2).flatten(0, 1)[:length], values.permute(0, 2, 1, 3).flatten(0, 1)[:length]


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
    """As `op.paged_attention`, in the dtype of `q`."""
    write_cache(k, v, k_cache, v_cache, slots)
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    sharing = q.shape[1] // k_cache.shape[1]
    starts = query_start.tolist()
    for sequence, length in enumerate(seq_lens.tolist()):
        keys, values = read_cache(k_cache, v_cache, block_table[sequence], length)
        first, last = starts[sequence], starts[sequence + 1]
        keys = keys.to(q.dtype).repeat_interleave(sharing, dim=1)
        values = values.to(q.dtype).repeat_interleave(sharing, dim=1)
        distance = torch.arange(length - (last - first), length)[:, None] - torch.arange(length)
        hidden = (distance < 0) | ((distance >= window) if window > 0 else False)
        scores = torch.einsum("thd,lhd->htl", q[first:last], keys) * scale
        weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=2)
        out[first:last] = torch.einsum("htl,lhd->thd", weights, values)
    return out

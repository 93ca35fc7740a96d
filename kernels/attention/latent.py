"""What attention over latents computes, in plain PyTorch: expanded, as a model has it, and absorbed, as it is computed.

Legend: T tokens, QH heads, N and R elements of a query without and with positions, L of a latent, V of a value. As the functions of
`reference.py`, each works in the dtype of its queries.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from .options import AttentionOptions
from .reference import as_multiplied, hidden_keys, read_keys, write_keys


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
    """Latents are keys that all heads share, and their first L elements are values.

    q [QH, T, L], q_rope [T, QH, R], latents [T, L + R] float32, the rest as in `op.expanded_attention` -> [QH, T, L] float32.
    """
    write_keys(latents[:, None], cache, slot_mapping)
    queries = torch.cat((q.transpose(0, 1), q_rope), dim=2) * scale
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    for first, last, kept in _kept(cache, cu_seqlens, seq_lens, block_table, latents.shape[1]):
        keys = kept.to(q.dtype)
        scores = torch.einsum("thd,ld->htl", as_multiplied(queries[first:last], cache), keys)
        weights = _causal_softmax(scores, last - first)
        out[:, first:last] = torch.einsum("htl,ld->htd", as_multiplied(weights, cache), keys[:, : q.shape[2]])
    return out


def expanded_attention(
    q: Tensor,
    latents: Tensor,
    key_up: Tensor,
    value_up: Tensor,
    cache: Tensor,
    cu_seqlens: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    slot_mapping: Tensor,
    scale: float,
) -> Tensor:
    """As `op.expanded_attention`."""
    write_keys(latents[:, None], cache, slot_mapping)
    out = q.new_zeros(*q.shape[:2], value_up.shape[0] // q.shape[1])
    for first, last, kept in _kept(cache, cu_seqlens, seq_lens, block_table, latents.shape[1]):
        out[first:last] = _expanded(q[first:last], kept.to(q.dtype), key_up, value_up, scale)
    return out


def causal_expanded_attention(q: Tensor, latents: Tensor, key_up: Tensor, value_up: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """What `expanded_attention` gives for sequences that are there as a whole, without a cache."""
    out = q.new_zeros(*q.shape[:2], value_up.shape[0] // q.shape[1])
    for first, last in pairwise(cu_seqlens.tolist()):
        out[first:last] = _expanded(q[first:last], latents[first:last], key_up, value_up, scale)
    return out


def _kept(cache: Tensor, cu_seqlens: Tensor, seq_lens: Tensor, block_table: Tensor, width: int) -> Iterator[tuple[int, int, Tensor]]:
    """Of every sequence: where its tokens begin and end in the step, and all that is kept of it, [length, L + R]."""
    starts = cu_seqlens.tolist()
    for sequence, length in enumerate(seq_lens.tolist()):
        yield starts[sequence], starts[sequence + 1], read_keys(cache, block_table[sequence], length, width)[:, 0]


def _expanded(q: Tensor, latents: Tensor, key_up: Tensor, value_up: Tensor, scale: float) -> Tensor:
    """The last queries [T, QH, N + R] of a sequence with these latents [length, L + R] -> [T, QH, V]."""
    heads, plain, rank = q.shape[1], key_up.shape[1], value_up.shape[1]
    made_of, shared = latents[:, :rank], latents[:, None, rank:].expand(-1, heads, -1)
    keys = torch.cat((torch.einsum("lr,hrn->lhn", made_of, key_up.view(heads, rank, plain)), shared), dim=2)
    values = torch.einsum("lr,hvr->lhv", made_of, value_up.view(heads, -1, rank))
    weights = _causal_softmax(torch.einsum("thd,lhd->htl", q * scale, keys), len(q))
    return torch.einsum("htl,lhv->thv", weights, values)


def _causal_softmax(scores: Tensor, new: int) -> Tensor:
    """Weights of scores [QH, T, length] of the last `new` tokens."""
    hidden = hidden_keys(new, scores.shape[2], AttentionOptions(scale=1.0))
    return scores.masked_fill(hidden, -torch.inf).softmax(dim=2)

"""What comes before attention, in one launch: QK-norm, rotary embedding, and writing keys and values to the cache.

Bound by the latency of a launch in decode, by memory in prefill: everything is read once.
"""

from typing import Any

import triton
import triton.language as tl

from .launch import Launch, Size, Tensor, cdiv

_HEADS = 8
"""Heads of one token per program."""


@triton.jit
def rotated_halves(
    x, weight, cos, sin, token, at, inside, half, half_inside, EPS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Both halves [heads, D / 2] float32 of the heads at x + at, over their root mean square and turned, where weight and cos are given."""
    low = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(x + at + HALF, mask=inside, other=0.0).to(tl.float32)
    if weight is not None:
        inverse = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / (2 * HALF) + EPS)[:, None]
        low = low * inverse * tl.load(weight + half, mask=half_inside, other=0.0).to(tl.float32)[None, :]
        high = high * inverse * tl.load(weight + HALF + half, mask=half_inside, other=0.0).to(tl.float32)[None, :]
    if cos is not None:
        c = tl.load(cos + token * HALF + half, mask=half_inside, other=0.0).to(tl.float32)[None, :]
        s = tl.load(sin + token * HALF + half, mask=half_inside, other=0.0).to(tl.float32)[None, :]
        return low * c - high * s, high * c + low * s
    return low, high


@triton.jit
def rope_kv_write_kernel(
    q, k, v, q_norm, k_norm, cos, sin, q_out, k_cache, v_cache, slots, q_token, q_head, k_token, k_head, v_token, v_head,
    k_block, k_cache_head, v_block, v_cache_head, q_heads, kv_heads,
    EPS: tl.constexpr, HALF: tl.constexpr, HALF_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one token per program: first all of q (if there is q_out [T, QH, D]), then k and v together.

    X_token and X_head: strides of q, k, v. X_block and X_cache_head: strides of the caches.
    """
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    half = tl.arange(0, HALF_PADDED)
    q_groups = 0
    if q_out is not None:
        q_groups = tl.cdiv(q_heads, HEADS)
        if group < q_groups:
            head = group * HEADS + tl.arange(0, HEADS)
            inside = (head < q_heads)[:, None] & (half < HALF)[None, :]
            at = token * q_token + head[:, None] * q_head + half[None, :]
            low, high = rotated_halves(q, q_norm, cos, sin, token, at, inside, half, half < HALF, EPS, HALF)
            to = (token * q_heads + head[:, None]) * 2 * HALF + half[None, :]
            tl.store(q_out + to, low.to(q_out.dtype.element_ty), mask=inside)
            tl.store(q_out + to + HALF, high.to(q_out.dtype.element_ty), mask=inside)
    slot = tl.load(slots + token)
    if (group >= q_groups) & (slot >= 0):
        head = (group - q_groups) * HEADS + tl.arange(0, HEADS)
        inside = (head < kv_heads)[:, None] & (half < HALF)[None, :]
        block = (slot // BLOCK_SIZE).to(tl.int64)
        place = slot % BLOCK_SIZE * 2 * HALF + half[None, :]
        at = token * k_token + head[:, None] * k_head + half[None, :]
        low, high = rotated_halves(k, k_norm, cos, sin, token, at, inside, half, half < HALF, EPS, HALF)
        to = block * k_block + head[:, None] * k_cache_head + place
        tl.store(k_cache + to, low.to(k_cache.dtype.element_ty), mask=inside)
        tl.store(k_cache + to + HALF, high.to(k_cache.dtype.element_ty), mask=inside)
        at = token * v_token + head[:, None] * v_head + half[None, :]
        to = block * v_block + head[:, None] * v_cache_head + place
        tl.store(v_cache + to, tl.load(v + at, mask=inside, other=0.0).to(v_cache.dtype.element_ty), mask=inside)
        tl.store(v_cache + to + HALF, tl.load(v + at + HALF, mask=inside, other=0.0).to(v_cache.dtype.element_ty), mask=inside)


def rope_kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    angles: tuple[Tensor, Tensor] | None,
    q_out: Tensor | None,
    caches: tuple[Tensor, Tensor],
    slots: Tensor,
    eps: float,
) -> Launch:
    """k (normalized, rotated) and v [T, KH, D] go to the caches at slots [T], q (likewise) to q_out [T, QH, D].

    norms: weights [D] for q and k. angles: cos and sin [T, D / 2] float32. Without q_out, q is left alone.
    """
    head_dim, block_size = q.shape[2], caches[0].shape[2]
    assert head_dim % 2 == 0, head_dim
    assert all(cache.strides[2:] == (head_dim, 1) for cache in caches), caches
    optional = {"q_norm": norms and norms[0], "k_norm": norms and norms[1], "cos": angles and angles[0], "sin": angles and angles[1]}
    optional["q_out"] = q_out
    strides: dict[str, Size] = {}
    for name, x in (("q", q), ("k", k), ("v", v)):
        strides |= {f"{name}_token": x.strides[0], f"{name}_head": x.strides[1]}
    for name, cache in zip("kv", caches, strict=True):
        strides |= {f"{name}_block": cache.strides[0], f"{name}_cache_head": cache.strides[1]}
    tensors: dict[str, Any] = {"q": q, "k": k, "v": v, "k_cache": caches[0], "v_cache": caches[1], "slots": slots}
    tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    groups = cdiv(k.shape[1], _HEADS) + (0 if q_out is None else cdiv(q.shape[1], _HEADS))
    return Launch(
        function=rope_kv_write_kernel,
        grid=(q.shape[0], groups, 1),
        arguments={**tensors, **strides, "q_heads": q.shape[1], "kv_heads": k.shape[1]},
        constants={
            **{name: None for name, tensor in optional.items() if tensor is None},
            "EPS": float(eps),
            "HALF": head_dim // 2,
            "HALF_PADDED": triton.next_power_of_2(head_dim // 2),
            "BLOCK_SIZE": block_size,
            "HEADS": _HEADS,
        },
        num_warps=2,
    )

"""What comes before attention, in one launch: QK-norm, rotary embedding, and writing keys and values to the cache.

Bound by the latency of a launch in decode, by memory in prefill: everything is read once.
"""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from .launch import Launch, Size, Tensor, cdiv

_HEADS = 8
"""Heads of one token per program."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What becomes of queries and keys: weights [D] of norms, cos and sin [T, R / 2], q_scale [T], float32 or None."""

    q_norm: Tensor | None
    k_norm: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    q_scale: Tensor | None
    eps: float
    norm_after_rope: bool

    @property
    def changes_queries(self) -> bool:
        return any(tensor is not None for tensor in (self.q_norm, self.cos, self.q_scale))

    def tensors(self) -> dict[str, Tensor | None]:
        """By parameter of the kernel."""
        return {"q_norm": self.q_norm, "k_norm": self.k_norm, "cos": self.cos, "sin": self.sin, "q_scale": self.q_scale}


@triton.jit
def load_head(x, at, inside, PAIRS: tl.constexpr, REST: tl.constexpr, PAIRS_PADDED: tl.constexpr, REST_PADDED: tl.constexpr):
    """Heads [heads, D] at x + at [heads, 1] in float32: of each pair (i, PAIRS + i) both elements, then the REST behind the pairs."""
    pair = tl.arange(0, PAIRS_PADDED)[None, :]
    low = tl.load(x + at + pair, mask=inside & (pair < PAIRS), other=0.0).to(tl.float32)
    high = tl.load(x + at + PAIRS + pair, mask=inside & (pair < PAIRS), other=0.0).to(tl.float32)
    rest = low
    if REST > 0:
        place = tl.arange(0, REST_PADDED)[None, :]
        rest = tl.load(x + at + 2 * PAIRS + place, mask=inside & (place < REST), other=0.0).to(tl.float32)
    return low, high, rest


@triton.jit
def store_head(
    x, at, inside, low, high, rest, PAIRS: tl.constexpr, REST: tl.constexpr, PAIRS_PADDED: tl.constexpr, REST_PADDED: tl.constexpr,
):  # fmt: skip
    """The opposite of load_head, rounded to the type of x."""
    pair = tl.arange(0, PAIRS_PADDED)[None, :]
    tl.store(x + at + pair, low.to(x.dtype.element_ty), mask=inside & (pair < PAIRS))
    tl.store(x + at + PAIRS + pair, high.to(x.dtype.element_ty), mask=inside & (pair < PAIRS))
    if REST > 0:
        place = tl.arange(0, REST_PADDED)[None, :]
        tl.store(x + at + 2 * PAIRS + place, rest.to(x.dtype.element_ty), mask=inside & (place < REST))


@triton.jit
def normalized(
    low, high, rest, weight, EPS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, PAIRS_PADDED: tl.constexpr,
    REST_PADDED: tl.constexpr,
):  # fmt: skip
    """Heads over their root mean square, times weight [D]; as they are where there is no weight."""
    if weight is not None:
        squares = tl.sum(low * low, 1) + tl.sum(high * high, 1)
        if REST > 0:
            squares += tl.sum(rest * rest, 1)
        inverse = tl.rsqrt(squares / (2 * PAIRS + REST) + EPS)[:, None]
        everywhere = tl.full((1, 1), 1, tl.int1)
        low_weight, high_weight, rest_weight = load_head(weight, 0, everywhere, PAIRS, REST, PAIRS_PADDED, REST_PADDED)
        low = low * inverse * low_weight
        high = high * inverse * high_weight
        if REST > 0:
            rest = rest * inverse * rest_weight
    return low, high, rest


@triton.jit
def prepared_head(
    x, at, inside, weight, cos, sin, token, EPS: tl.constexpr, NORM_AFTER_ROPE: tl.constexpr,
    PAIRS: tl.constexpr, REST: tl.constexpr, PAIRS_PADDED: tl.constexpr, REST_PADDED: tl.constexpr,
):  # fmt: skip
    """As load_head, normalized and its pairs rotated, where weight and cos are given."""
    low, high, rest = load_head(x, at, inside, PAIRS, REST, PAIRS_PADDED, REST_PADDED)
    if not NORM_AFTER_ROPE:
        low, high, rest = normalized(low, high, rest, weight, EPS, PAIRS, REST, PAIRS_PADDED, REST_PADDED)
    if cos is not None:
        pair = tl.arange(0, PAIRS_PADDED)
        c = tl.load(cos + token * PAIRS + pair, mask=pair < PAIRS, other=0.0).to(tl.float32)[None, :]
        s = tl.load(sin + token * PAIRS + pair, mask=pair < PAIRS, other=0.0).to(tl.float32)[None, :]
        turned = low * c - high * s
        high = high * c + low * s
        low = turned
    if NORM_AFTER_ROPE:
        low, high, rest = normalized(low, high, rest, weight, EPS, PAIRS, REST, PAIRS_PADDED, REST_PADDED)
    return low, high, rest


@triton.jit
def rope_kv_write_kernel(
    q, k, v, q_norm, k_norm, cos, sin, q_scale, q_out, k_cache, v_cache, slot_mapping, q_token, q_head, k_token, k_head, v_token, v_head,
    k_block, k_cache_head, v_block, v_cache_head, q_heads, kv_heads,
    EPS: tl.constexpr, NORM_AFTER_ROPE: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, PAIRS_PADDED: tl.constexpr,
    REST_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one token per program: first all of q (if there is q_out [T, QH, D]), then k and v together.

    X_token and X_head: strides of q, k, v. X_block and X_cache_head: strides of the caches.
    """
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    head_dim: tl.constexpr = 2 * PAIRS + REST
    q_groups = 0
    if q_out is not None:
        q_groups = tl.cdiv(q_heads, HEADS)
        if group < q_groups:
            head = (group * HEADS + tl.arange(0, HEADS))[:, None]
            inside = head < q_heads
            at = token * q_token + head * q_head
            low, high, rest = prepared_head(
                q, at, inside, q_norm, cos, sin, token, EPS, NORM_AFTER_ROPE, PAIRS, REST, PAIRS_PADDED, REST_PADDED
            )
            if q_scale is not None:
                scale = tl.load(q_scale + token)
                low, high, rest = low * scale, high * scale, rest * scale
            to = (token * q_heads + head) * head_dim
            store_head(q_out, to, inside, low, high, rest, PAIRS, REST, PAIRS_PADDED, REST_PADDED)
    slot = tl.load(slot_mapping + token)
    if (group >= q_groups) & (slot >= 0):
        head = ((group - q_groups) * HEADS + tl.arange(0, HEADS))[:, None]
        inside = head < kv_heads
        block = (slot // BLOCK_SIZE).to(tl.int64)
        place = slot % BLOCK_SIZE * head_dim
        at = token * k_token + head * k_head
        low, high, rest = prepared_head(
            k, at, inside, k_norm, cos, sin, token, EPS, NORM_AFTER_ROPE, PAIRS, REST, PAIRS_PADDED, REST_PADDED
        )
        to = block * k_block + head * k_cache_head + place
        store_head(k_cache, to, inside, low, high, rest, PAIRS, REST, PAIRS_PADDED, REST_PADDED)
        at = token * v_token + head * v_head
        low, high, rest = load_head(v, at, inside, PAIRS, REST, PAIRS_PADDED, REST_PADDED)
        to = block * v_block + head * v_cache_head + place
        store_head(v_cache, to, inside, low, high, rest, PAIRS, REST, PAIRS_PADDED, REST_PADDED)


def rope_kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    preparation: Preparation,
    q_out: Tensor | None,
    caches: tuple[Tensor, Tensor],
    slot_mapping: Tensor,
) -> Launch:
    """k, prepared, and v [T, KH, D] go to the caches at slot_mapping [T], q, prepared, to q_out [T, QH, D].

    Without q_out, q is left alone.
    """
    head_dim, block_size = q.shape[2], caches[0].shape[2]
    assert head_dim % 2 == 0, head_dim
    assert all(cache.strides[2:] == (head_dim, 1) for cache in caches), caches
    optional = {**preparation.tensors(), "q_out": q_out}
    strides: dict[str, Size] = {}
    for name, x in (("q", q), ("k", k), ("v", v)):
        strides |= {f"{name}_token": x.strides[0], f"{name}_head": x.strides[1]}
    for name, cache in zip("kv", caches, strict=True):
        strides |= {f"{name}_block": cache.strides[0], f"{name}_cache_head": cache.strides[1]}
    tensors: dict[str, Any] = {"q": q, "k": k, "v": v, "k_cache": caches[0], "v_cache": caches[1], "slot_mapping": slot_mapping}
    tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    groups = cdiv(k.shape[1], _HEADS) + (0 if q_out is None else cdiv(q.shape[1], _HEADS))
    pairs = head_dim // 2 if preparation.cos is None else preparation.cos.shape[1]
    rest = head_dim - 2 * pairs
    return Launch(
        function=rope_kv_write_kernel,
        grid=(q.shape[0], groups, 1),
        arguments={**tensors, **strides, "q_heads": q.shape[1], "kv_heads": k.shape[1]},
        constants={
            **{name: None for name, tensor in optional.items() if tensor is None},
            "EPS": float(preparation.eps),
            "NORM_AFTER_ROPE": preparation.norm_after_rope,
            "PAIRS": pairs,
            "REST": rest,
            "PAIRS_PADDED": triton.next_power_of_2(pairs),
            "REST_PADDED": triton.next_power_of_2(max(1, rest)),
            "BLOCK_SIZE": block_size,
            "HEADS": _HEADS,
        },
        num_warps=2,
    )

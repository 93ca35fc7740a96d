"""Attention, over a paged KV cache or within whole texts: what differs between families is a field.

Legend: T tokens of the step, H hidden size, QH / KH query and key-value heads, D head size, V elements of a value.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ...errors import CheckpointError, UnsupportedModelError
from ...kernels.attention.op import attention, bidirectional_attention
from ...kernels.attention.options import AttentionOptions
from ..step import GroupInputs, Step
from .activations import activation
from .norm import NormSpec, applied
from .rope import RopeSpec, rotate

KVCache = tuple[torch.Tensor, ...]
"""The tensors of a layer's cache: of keys and of values, or one of latents."""
Angles = tuple[torch.Tensor, torch.Tensor]
Written = tuple[torch.Tensor, ...]
"""What a layer writes into its cache."""


@dataclass(frozen=True, kw_only=True)
class QKNormSpec:
    """A norm of queries and keys: over each head with one weight ("head") or with a weight of its own ("each_head"), or over all heads
    together ("width"). after_rope: whether it comes after the rotation."""

    norm: NormSpec
    over: Literal["head", "each_head", "width"] = "head"
    after_rope: bool = False


@dataclass(frozen=True, kw_only=True)
class TemperatureSpec:
    """Queries grow with their position: times 1 + beta * ln(1 + floor((position + offset) / length)), Llama 4's attention temperature."""

    beta: float
    length: int
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class GateSpec:
    """What the result is multiplied with: function(linear(x)), a number for each element or, by_head, one for each head."""

    function: Literal["sigmoid", "softplus"] = "sigmoid"
    by_head: bool = False


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """One layer's attention. Raises CheckpointError on shapes that cannot be, UnsupportedModelError for values wider than keys.

    value_dim: elements of a value, no more than of a key; 0 for as many. rope: None for layers without positions. window: tokens that
    each position attends to, itself included; 0 for all of them. chunk: positions attend to those of the same chunk of so many; 0 for all
    of them. scale: what products of queries and keys are multiplied with. softcap: C > 0 makes a score s C * tanh(s / C). sinks: whether
    every query head has a learned score that takes its share of the softmax and adds no value. gate: what the result is multiplied with.
    clip: C > 0 clamps queries, keys and values to -C .. C before anything else. value_norm: a norm of values over each head.
    values_are_keys: whether values are what the projection of keys gives, before their norm and rotation. output_norm: a norm before the
    output projection. multiplier: of what that gives. source: the earlier layer whose keys and values this one reads; None for its own.
    causal: whether tokens see none that follow; else a window is of both sides, and keys and values are not kept.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int = 0
    rope: RopeSpec | None
    scale: float
    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: QKNormSpec | None = None
    value_norm: NormSpec | None = None
    values_are_keys: bool = False
    output_norm: NormSpec | None = None
    multiplier: float = 1.0
    sinks: bool = False
    gate: GateSpec | None = None
    clip: float = 0.0
    temperature: TemperatureSpec | None = None
    source: int | None = None
    causal: bool = True

    cache_parts = ("k", "v")

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_kv_heads", "head_dim"):
            if getattr(self, name) <= 0:
                raise CheckpointError(
                    f"the model's configuration gives {name} = {getattr(self, name)}; it must be positive",
                    hint="the file was edited or damaged; fetch the checkpoint again",
                )
        for name in ("window", "chunk", "value_dim"):
            if getattr(self, name) < 0:
                raise CheckpointError(
                    f"the model's configuration gives a {name} of {getattr(self, name)}; it must not be negative",
                    hint="the file was edited or damaged; fetch the checkpoint again",
                )
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"the model's configuration gives {self.num_heads} attention heads and {self.num_kv_heads} key-value heads;"
                " the first must be a multiple of the second",
                hint="the file was edited or damaged; fetch the checkpoint again",
            )
        if self.value_dim > self.head_dim:
            raise UnsupportedModelError(
                f"values of {self.value_dim} elements and keys of {self.head_dim} are not supported", hint="no values wider than keys are"
            )

    @property
    def value_size(self) -> int:
        """Elements of a value."""
        return self.value_dim or self.head_dim


class Attention(nn.Module):
    """The mixer of a layer. Its norms, rotation and scale become part of the attention operator where a pass can put them there."""

    def __init__(self, spec: AttentionSpec, hidden_size: int) -> None:
        super().__init__()
        result_size = spec.num_heads * spec.value_size
        self.q = nn.Linear(hidden_size, spec.num_heads * spec.head_dim, bias=spec.qkv_bias)
        self.k = nn.Linear(hidden_size, spec.num_kv_heads * spec.head_dim, bias=spec.qkv_bias) if spec.source is None else None
        has_values = spec.source is None and not spec.values_are_keys
        self.v = nn.Linear(hidden_size, spec.num_kv_heads * spec.value_size, bias=spec.qkv_bias) if has_values else None
        self.o = nn.Linear(result_size, hidden_size, bias=spec.output_bias)
        gates = spec.num_heads if spec.gate is not None and spec.gate.by_head else result_size
        self.gate = None if spec.gate is None else nn.Linear(hidden_size, gates, bias=False)
        self.q_norm = _head_norm(spec, spec.num_heads)
        self.k_norm = _head_norm(spec, spec.num_kv_heads) if spec.source is None else None
        self.v_norm = None if spec.value_norm is None or spec.source is not None else spec.value_norm.module(spec.value_size)
        self.output_norm = None if spec.output_norm is None else spec.output_norm.module(result_size)
        self.sinks = nn.Parameter(torch.empty(spec.num_heads)) if spec.sinks else None
        self.spec = spec
        self.options = AttentionOptions(scale=spec.scale, window=spec.window, chunk=spec.chunk, softcap=spec.softcap)
        self.attend: Callable[..., torch.Tensor] = attention if spec.causal else bidirectional_attention

    def forward(
        self,
        x_TH: torch.Tensor,
        angles: Angles | None,
        step: Step,
        group: GroupInputs | None,
        cache: KVCache | None,
        shared: Written | None,
    ) -> tuple[torch.Tensor, Written]:
        """x [T, H] -> [T, H], and the keys and values that it wrote: [T, KH, D] and [T, KH, V], as attention takes them.

        angles: cos and sin [T, width / 2], None without a rotation. group, cache: None of a layer that is not causal.
        shared: keys and values of the layer `spec.source`.
        """
        spec = self.spec
        q = self._prepared(self._heads(self.q(x_TH), self.q_norm), self.q_norm, angles)
        if spec.temperature is not None:
            q = q * temperature(spec.temperature, step.positions)[:, None, None]
        k, v = self._keys_values(x_TH, angles) if shared is None else shared
        if cache is None or group is None:
            out = self.attend(q, k, v, step.cu_seqlens, self.options, sinks=self.sinks)
        else:
            out = self.attend(q, k, v, *cache, step.cu_seqlens, step.seq_lens, *group, self.options, sinks=self.sinks)
        out = self._gated(out, x_TH)
        projected: torch.Tensor = self.o(applied(self.output_norm, out))
        return projected if spec.multiplier == 1.0 else projected * spec.multiplier, (k, v)

    def _gated(self, out: torch.Tensor, x_TH: torch.Tensor) -> torch.Tensor:
        """The result [T, QH, V] times its gate, [T, QH * V]."""
        size = self.spec.num_heads * self.spec.value_size
        if self.gate is None or self.spec.gate is None:
            return out.view(-1, size)
        factors = activation(self.spec.gate.function)(self.gate(x_TH))
        return (out * factors.unsqueeze(2)).view(-1, size) if self.spec.gate.by_head else out.view(-1, size) * factors

    def _keys_values(self, x_TH: torch.Tensor, angles: Angles | None) -> Written:
        assert self.k is not None
        keys = self.k(x_TH)
        k = self._prepared(self._heads(keys, self.k_norm), self.k_norm, angles)
        v = self._clipped(keys if self.v is None else self.v(x_TH)).view(-1, self.spec.num_kv_heads, self.spec.value_size)
        return k, applied(self.v_norm, v)

    def _clipped(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.spec.clip <= 0 else x.clamp(-self.spec.clip, self.spec.clip)

    def _heads(self, x: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        """[T, heads * D] -> [T, heads, D]."""
        x = self._clipped(x)
        if norm is not None and self._normalizes("width"):
            x = norm(x)
        return x.view(-1, x.shape[1] // self.spec.head_dim, self.spec.head_dim)

    def _prepared(self, x: torch.Tensor, norm: nn.Module | None, angles: Angles | None) -> torch.Tensor:
        """Heads normalized and rotated."""
        if norm is None or self._normalizes("width"):
            return x if angles is None else rotate(x, *angles)
        if angles is None:
            normed: torch.Tensor = norm(x)
            return normed
        after: torch.Tensor = norm(rotate(x, *angles)) if self._normalizes_late else rotate(norm(x), *angles)
        return after

    def _normalizes(self, over: str) -> bool:
        return self.spec.qk_norm is not None and self.spec.qk_norm.over == over

    @property
    def _normalizes_late(self) -> bool:
        return self.spec.qk_norm is not None and self.spec.qk_norm.after_rope


def _head_norm(spec: AttentionSpec, heads: int) -> nn.Module | None:
    if spec.qk_norm is None:
        return None
    shape = {"head": (spec.head_dim,), "each_head": (heads, spec.head_dim), "width": (heads * spec.head_dim,)}[spec.qk_norm.over]
    return spec.qk_norm.norm.module(*shape)


def temperature(spec: TemperatureSpec, positions_T: torch.Tensor) -> torch.Tensor:
    """What the query of each position is multiplied with, [T] float32."""
    positions = positions_T.to(torch.float32)
    return 1.0 + spec.beta * torch.log1p(torch.floor((positions + spec.offset if spec.offset else positions) / spec.length))

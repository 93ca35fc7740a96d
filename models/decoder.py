"""The Llama family as one plain PyTorch module over a ragged batch and a paged KV cache.

Legend: T tokens of the step, R rows that get logits, H hidden size, F feed-forward
size, QH / KH query and key-value heads, D head size, V vocabulary. All floats are float32.
"""

import torch
from torch import nn
from torch.nn import functional as F

from ..kernels.attention.op import attention
from ..kernels.attention.options import AttentionOptions
from .cache_groups import cache_groups
from .config import LayerConfig, ModelConfig
from .rope import inverse_frequencies
from .step import Step

KVCache = tuple[torch.Tensor, torch.Tensor]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., size] -> [..., size]."""
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.eps))


class Rope(nn.Module):
    """Angles of the rotary embedding. Its buffer `inv_freq` [D / 2] is a weight like any other to the compiler."""

    inv_freq: torch.Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inverse_frequencies(config.rope, config.head_dim))
        self.attention_factor = config.rope.attention_factor

    def forward(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """positions [T] int32 -> cos and sin, each [T, D / 2]."""
        angles = positions_T.to(torch.float32)[:, None] * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        if self.attention_factor != 1.0:
            cos, sin = cos * self.attention_factor, sin * self.attention_factor
        return cos, sin


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns pair (i, i + D / 2) of every head by its angle: x [T, heads, D], cos and sin [T, D / 2] -> [T, heads, D]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: LayerConfig, group: str) -> None:
        super().__init__()
        query_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o = nn.Linear(query_size, config.hidden_size, bias=config.output_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_eps) if config.qk_norm else None
        self.sinks = nn.Parameter(torch.empty(config.num_heads)) if config.attention_sinks else None
        self.config = config
        self.layer = layer
        self.group = group
        scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.options = AttentionOptions(scale=scale, window=layer.window)
        self.attend = attention

    def forward(self, x_TH: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, step: Step, kv_cache: KVCache) -> torch.Tensor:
        config = self.config
        q = self.q(x_TH).view(-1, config.num_heads, config.head_dim)
        k = self.k(x_TH).view(-1, config.num_kv_heads, config.head_dim)
        v = self.v(x_TH).view(-1, config.num_kv_heads, config.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.layer.use_rope:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k_cache, v_cache = kv_cache
        table, slots = step.groups[self.group]
        out = self.attend(q, k, v, k_cache, v_cache, step.cu_seqlens, step.seq_lens, table, slots, self.options, sinks=self.sinks)
        projected: torch.Tensor = self.o(out.view(-1, config.num_heads * config.head_dim))
        return projected


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_TH: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(F.silu(self.gate(x_TH)) * self.up(x_TH))
        return out


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: LayerConfig, group: str) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_eps)
        self.attention = Attention(config, layer, group)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_eps)
        self.mlp = MLP(config)

    def forward(self, x_TH: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, step: Step, kv_cache: KVCache) -> torch.Tensor:
        x_TH = x_TH + self.attention(self.attention_norm(x_TH), cos, sin, step, kv_cache)
        out: torch.Tensor = x_TH + self.mlp(self.mlp_norm(x_TH))
        return out


class Decoder(nn.Module):
    """Every model of the Llama family; `config` says which.

    Its parameters and buffers, by name, are the weights of the model: `embed.weight`, `rope.inv_freq`,
    `layers.N.{attention_norm,mlp_norm}.weight`, `layers.N.attention.{q,k,v,o}.{weight,bias}`,
    `layers.N.attention.{q_norm,k_norm}.weight`, `layers.N.attention.sinks`, `layers.N.mlp.{gate,up,down}.{weight,bias}`, `norm.weight`, and
    `head.weight` unless the embedding is tied. Nothing in construction depends on data: it works under fake tensors.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rope = Rope(config)
        group_of = {layer: group.name for group in cache_groups(config) for layer in group.layers}
        self.layers = nn.ModuleList(Layer(config, layer, group_of[index]) for index, layer in enumerate(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @staticmethod
    def constants(config: ModelConfig) -> dict[str, torch.Tensor]:
        """Values of the buffers, which no checkpoint carries, by name; float32."""
        return {"rope.inv_freq": inverse_frequencies(config.rope, config.head_dim)}

    def forward(self, step: Step, kv_caches: list[KVCache]) -> torch.Tensor:
        """Runs one step and writes the new tokens' keys and values into the caches.

        kv_caches: a pair of [blocks, KH, block_size, D] per layer. Returns the logits of the rows
        `step.logit_rows`, [R, V] float32.
        """
        x_TH = self.embed(step.tokens)
        cos, sin = self.rope(step.positions)
        for layer, kv_cache in zip(self.layers, kv_caches, strict=True):
            x_TH = layer(x_TH, cos, sin, step, kv_cache)
        x_RH = self.norm(x_TH.index_select(0, step.logit_rows))
        return F.linear(x_RH, self.embed.weight if self.head is None else self.head.weight)

"""A model of parts as one plain PyTorch module over a ragged batch and a paged KV cache. It knows no family: its spec says all.

An encoder is one whose layers see later tokens too, and have no cache.

Legend: T tokens of the step, R rows that get logits, H hidden size, V vocabulary. All floats are float32.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .cache_groups import group_of_layers
from .parts.attention import Angles, Attention, AttentionSpec, KVCache, Written
from .parts.latent_attention import LatentAttention
from .parts.layer_inputs import LayerInput, LayerInputs, LayerInputsSpec
from .parts.mlp import MLP, MLPSpec
from .parts.moe import MoE
from .parts.norm import NormSpec, applied
from .parts.pooling import Pooling
from .parts.rope import Rope, RopeSpec, inverse_frequencies
from .spec import Channel, LayerSpec, Mixer, ModelSpec
from .step import GroupInputs, Step


class Layer(nn.Module):
    """Mixer and channel, one after the other or side by side, and behind them what comes of an input of the layer's own."""

    def __init__(self, spec: LayerSpec, hidden_size: int, inputs: LayerInputsSpec | None) -> None:
        super().__init__()
        norms = spec.norms
        self.attention_norm = _norm(norms.before_mixer, hidden_size)
        self.attention = _mixer(spec.mixer, hidden_size)
        self.attention_post_norm = _norm(norms.after_mixer, hidden_size)
        self.mlp_norm = _norm(norms.before_channel, hidden_size)
        self.mlp = _channel(spec.channel, hidden_size)
        self.mlp_post_norm = _norm(norms.after_channel, hidden_size)
        self.input = None if inputs is None else LayerInput(inputs, hidden_size)
        self.scale = nn.Parameter(torch.empty(1)) if spec.scaled else None
        self.parallel, self.multiplier, self.normalizes_sums = spec.parallel, spec.multiplier, spec.normalizes_sums

    def forward(
        self,
        x_TH: torch.Tensor,
        angles: Angles | None,
        step: Step,
        group: GroupInputs | None,
        cache: KVCache | None,
        shared: Written | None,
        own: torch.Tensor | None,
    ) -> tuple[torch.Tensor, Written]:
        """x [T, H] -> [T, H], and what was written into the cache. own: the layer's input, [T, P]; the rest as `Attention.forward`."""
        normed = applied(self.attention_norm, x_TH)
        mixed, written = self.attention(normed, angles, step, group, cache, shared)
        x_TH = self._with_channel(x_TH, normed, mixed)
        if self.input is not None:
            x_TH = x_TH + self.input(x_TH, own)
        return x_TH if self.scale is None else x_TH * self.scale, written

    def _with_channel(self, x_TH: torch.Tensor, normed: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """The residual stream with what the mixer gave, and what the channel then gives. normed: what the mixer read."""
        if self.normalizes_sums:
            x_TH = applied(self.attention_post_norm, x_TH + self._scaled(mixed))
            return applied(self.mlp_post_norm, x_TH + self._scaled(self.mlp(applied(self.mlp_norm, x_TH))))
        mixed = self._scaled(applied(self.attention_post_norm, mixed))
        if self.parallel:
            read = normed if self.mlp_norm is None else self.mlp_norm(x_TH)
            return x_TH + mixed + self._scaled(applied(self.mlp_post_norm, self.mlp(read)))
        x_TH = x_TH + mixed
        return x_TH + self._scaled(applied(self.mlp_post_norm, self.mlp(applied(self.mlp_norm, x_TH))))

    def _scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.multiplier == 1.0 else x * self.multiplier


class Decoder(nn.Module):
    """A whole model.

    Its parameters and buffers, by name, are the weights of the model: `embed.weight`, `embed_types.weight`,
    `embed_positions.weight`, `embed_norm.*`, `ropes.N.inv_freq`, `layer_inputs.*`,
    `layers.N.{attention_norm,attention_post_norm,mlp_norm,mlp_post_norm}.*`, `layers.N.attention.*`, `layers.N.mlp.*`,
    `layers.N.input.*`, `layers.N.scale`, `norm.*`, and `head.weight` unless the embedding is tied, or `pooling.*` in its place. Nothing in
    construction depends on data: it works under fake tensors.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.embed_positions = nn.Embedding(spec.embed.positions, spec.hidden_size) if spec.embed.positions else None
        self.embed_types = nn.Embedding(spec.embed.types, spec.hidden_size) if spec.embed.types else None
        self.embed_norm = _norm(spec.embed.norm, spec.hidden_size)
        tables = rope_tables(spec)
        self.ropes = nn.ModuleList(map(Rope, tables))
        self.tables = [None if layer.mixer.rope is None else tables.index(layer.mixer.rope) for layer in spec.layers]
        self.groups = group_of_layers(spec)
        self.layers = nn.ModuleList(Layer(layer, spec.hidden_size, spec.layer_inputs) for layer in spec.layers)
        self.layer_inputs = _layer_inputs(spec)
        self.norm = _norm(spec.final, spec.hidden_size)
        self.pooling = None if spec.pooling is None else Pooling(spec.pooling, spec.hidden_size)
        self.head = (
            None if spec.head.tied or spec.pooling is not None else nn.Linear(spec.hidden_size, spec.vocab_size, bias=spec.head.bias)
        )

    def forward(self, step: Step, caches: Sequence[KVCache | None]) -> torch.Tensor:
        """Runs one step and writes the new tokens' keys and values into the caches.

        caches: of each layer that has one, a pair of [blocks, KH, block_size, D] for keys and values, or one [blocks, 1, block_size, D]
        for latents. Returns the logits of the step's `logit_rows`,
        [R, V] float32, or what pooling makes of them, [R, size].
        """
        x_TH = self.embed(step.tokens)
        if self.spec.embed.multiplier != 1.0:
            x_TH = x_TH * self.spec.embed.multiplier
        if self.embed_types is not None:
            only = torch.zeros_like(step.tokens)  # of models with a single type, as RoBERTa's
            x_TH = x_TH + self.embed_types(step.token_types if self.spec.embed.types > 1 else only)
        if self.embed_positions is not None:
            x_TH = x_TH + self.embed_positions(step.positions + self.spec.embed.offset)
        x_TH = applied(self.embed_norm, x_TH)
        angles = [rope(step.positions) for rope in self.ropes]
        own = [None] * len(self.layers) if self.layer_inputs is None else self.layer_inputs(step.tokens, x_TH)
        written: list[Written] = []
        for index, layer in enumerate(self.layers):
            table, source = self.tables[index], self.spec.layers[index].mixer.source
            name = self.groups[index]
            group, shared = None if name is None else step.groups[name], None if source is None else written[source]
            x_TH, wrote = layer(x_TH, None if table is None else angles[table], step, group, caches[index], shared, own[index])
            written.append(wrote)
        if self.pooling is not None:
            pooled: torch.Tensor = self.pooling(x_TH, self.norm, step)
            return pooled
        return self._logits(applied(self.norm, x_TH.index_select(0, step.logit_rows)))

    def _logits(self, x_RH: torch.Tensor) -> torch.Tensor:
        head = self.spec.head
        logits = F.linear(x_RH, self.embed.weight) if self.head is None else self.head(x_RH)
        if head.multiplier != 1.0:
            logits = logits * head.multiplier
        return head.softcap * torch.tanh(logits / head.softcap) if head.softcap > 0 else logits


def rope_tables(spec: ModelSpec) -> list[RopeSpec]:
    """The distinct rotary embeddings of a model, in order of first use."""
    return list(dict.fromkeys(layer.mixer.rope for layer in spec.layers if layer.mixer.rope is not None))


def constants(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """Values of a decoder's buffers, which no checkpoint carries, by name; float32."""
    return {f"ropes.{index}.inv_freq": inverse_frequencies(rope) for index, rope in enumerate(rope_tables(spec))}


def _mixer(spec: Mixer, hidden_size: int) -> Attention | LatentAttention:
    return Attention(spec, hidden_size) if isinstance(spec, AttentionSpec) else LatentAttention(spec, hidden_size)


def _channel(spec: Channel, hidden_size: int) -> nn.Module:
    return MLP(spec, hidden_size) if isinstance(spec, MLPSpec) else MoE(spec, hidden_size)


def _layer_inputs(spec: ModelSpec) -> LayerInputs | None:
    if spec.layer_inputs is None:
        return None
    return LayerInputs(spec.layer_inputs, layers=spec.num_layers, vocab_size=spec.vocab_size, hidden_size=spec.hidden_size)


def _norm(spec: NormSpec | None, size: int) -> nn.Module | None:
    return None if spec is None else spec.module(size)

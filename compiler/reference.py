"""The model in plain PyTorch float32: what every artifact is compared with.

It is the very module that is traced, run eagerly with the reference of attention. Weights are read
from the checkpoint and dequantized exactly, those of a layer when it is its turn, so a large model
needs one layer of memory beside embedding and head. Activations are never quantized here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..artifacts.step_arrays import Piece, step_arrays, whole_prompts
from ..kernels import mean_pool
from ..kernels.attention.latent import expanded_attention
from ..kernels.attention.reference import attention, bidirectional_attention
from ..models.cache_groups import cache_groups
from ..models.checkpoint import Checkpoint
from ..models.decoder import Decoder, Layer, constants
from ..models.parts.attention import KVCache
from ..models.parts.latent_attention import LatentAttention
from ..models.spec import ModelSpec
from ..models.step import Step
from ..models.stored_values import values_of

_BLOCK_SIZE = 16


def reference_logits(checkpoint: Checkpoint, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Logits after every token of every prompt, each [len(prompt), V] float32."""
    sizes = block_sizes(checkpoint.spec)
    pieces = [piece._replace(wanted=range(len(piece.tokens))) for piece in whole_prompts(prompts, sizes)]
    return list(_result(checkpoint, pieces, sizes).split([len(prompt) for prompt in prompts]))


def reference_pooled(checkpoint: Checkpoint, texts: list[list[int]], pair_starts: Sequence[int]) -> torch.Tensor:
    """What pooling gives for every text, [texts, size] float32. pair_starts: as in `Piece`, of each."""
    assert checkpoint.spec.pooling is not None
    sizes = block_sizes(checkpoint.spec)
    wanted = [0] if checkpoint.spec.pooling.kind == "cls" else None
    pieces = [
        piece._replace(pair_start=start) for piece, start in zip(whole_prompts(texts, sizes, wanted=wanted), pair_starts, strict=True)
    ]
    return _result(checkpoint, pieces, sizes)


def block_sizes(spec: ModelSpec) -> dict[str, int]:
    """Of every cache group, for a step that is computed on its own."""
    return {group.name: _BLOCK_SIZE for group in cache_groups(spec)}


@torch.no_grad()
def _result(checkpoint: Checkpoint, pieces: list[Piece], sizes: dict[str, int]) -> torch.Tensor:
    """Of one step that runs all of them."""
    step = Step.of({name: torch.from_numpy(array) for name, array in step_arrays(pieces, sizes).items()})
    rows: torch.Tensor = _decoder(checkpoint)(step, _caches(checkpoint, pieces))
    return rows


def _decoder(checkpoint: Checkpoint) -> Decoder:
    with torch.device("meta"):
        model = Decoder(checkpoint.spec).eval()
    outside = {
        name: read(checkpoint, name) for name, info in checkpoint.parameters.items() if not name.startswith("layers.") and not info.is_order
    }
    model.load_state_dict(outside | constants(checkpoint.spec), assign=True, strict=False)
    load_layers_when_run(checkpoint, model, torch.float32, attention=attention, latent=expanded_attention)
    return model


def load_layers_when_run(
    checkpoint: Checkpoint, model: Decoder, dtype: torch.dtype, *, attention: Callable[..., Any], latent: Callable[..., Any]
) -> None:
    """Have each layer in memory only while it runs. attention, latent: those of layers that look back; others look everywhere."""
    if model.pooling is not None:
        model.pooling.mean = mean_pool.reference
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        mixer = layer.attention
        causal = latent if isinstance(mixer, LatentAttention) else attention
        mixer.attend = causal if mixer.spec.causal else bidirectional_attention
        _load_when_run(checkpoint, layer, f"layers.{index}.", dtype)


def _load_when_run(checkpoint: Checkpoint, module: nn.Module, prefix: str, dtype: torch.dtype) -> None:
    """Have the parameters of `module`, whose names follow `prefix`, in memory only while it runs."""

    def load(module: nn.Module, args: Any) -> None:
        weights = {name: read(checkpoint, prefix + name).to(dtype) for name, _ in module.named_parameters()}
        module.load_state_dict(weights, assign=True)

    def forget(module: nn.Module, args: Any, result: Any) -> None:
        module.to("meta")

    module.register_forward_pre_hook(load)
    module.register_forward_hook(forget)


def read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A parameter as float32, dequantized exactly."""
    loaded = checkpoint.read(name)
    return values_of(loaded.format, loaded.data, loaded.order)


def _caches(checkpoint: Checkpoint, pieces: list[Piece]) -> list[KVCache | None]:
    """What every layer keeps, as many blocks as the texts fill."""
    blocks = sum(-(-len(piece.tokens) // _BLOCK_SIZE) for piece in pieces)
    caches: list[KVCache | None] = []
    for layer in checkpoint.spec.layers:
        mixer = layer.mixer
        if mixer.source is not None:
            caches.append(caches[mixer.source])
        elif mixer.causal:
            shape = (blocks, mixer.num_kv_heads, _BLOCK_SIZE, mixer.head_dim)
            caches.append(tuple(torch.zeros(shape) for _ in mixer.cache_parts))
        else:
            caches.append(None)
    return caches

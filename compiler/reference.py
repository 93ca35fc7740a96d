"""The model in plain PyTorch float32: what every artifact is compared with.

It is the very module that is traced, run eagerly with the reference of attention. Weights are read
from the checkpoint and dequantized exactly, those of a layer when it is its turn, so a large model
needs one layer of memory beside embedding and head. Activations are never quantized here.
"""

from typing import Any

import torch
from torch import nn

from ..artifacts.step_arrays import step_arrays, whole_prompts
from ..kernels.attention.reference import attention
from ..models.cache_groups import cache_groups
from ..models.checkpoint import Checkpoint
from ..models.decoder import Decoder, Layer, constants
from ..models.step import Step
from .recipes import dequantize

_BLOCK_SIZE = 16


@torch.no_grad()
def reference_logits(checkpoint: Checkpoint, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Logits after every token of every prompt, each [len(prompt), V] float32."""
    sizes = {group.name: _BLOCK_SIZE for group in cache_groups(checkpoint.spec)}
    arrays = step_arrays(whole_prompts(prompts, sizes), sizes)
    step = Step.of({name: torch.from_numpy(array) for name, array in arrays.items()})
    every_row = torch.arange(len(step.tokens), dtype=torch.int32)
    logits_TV = _decoder(checkpoint)(step._replace(logit_rows=every_row), _caches(checkpoint, prompts))
    return list(logits_TV.split([len(prompt) for prompt in prompts]))


def _decoder(checkpoint: Checkpoint) -> Decoder:
    with torch.device("meta"):
        model = Decoder(checkpoint.spec).eval()
    outside = {name: _read(checkpoint, name) for name in checkpoint.parameters if not name.startswith("layers.")}
    model.load_state_dict(outside | constants(checkpoint.spec), assign=True, strict=False)
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        layer.attention.attend = attention
        _load_when_run(checkpoint, layer, f"layers.{index}.")
    return model


def _load_when_run(checkpoint: Checkpoint, module: nn.Module, prefix: str) -> None:
    def load(module: nn.Module, args: Any) -> None:
        weights = {name: _read(checkpoint, prefix + name) for name, _ in module.named_parameters()}
        module.load_state_dict(weights, assign=True)

    def forget(module: nn.Module, args: Any, result: Any) -> None:
        module.to("meta")

    module.register_forward_pre_hook(load)
    module.register_forward_hook(forget)


def _read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    loaded = checkpoint.read(name)
    return dequantize(loaded.format, loaded.data)


def _caches(checkpoint: Checkpoint, prompts: list[list[int]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of every layer, as many blocks as the prompts fill."""
    blocks = sum(-(-len(prompt) // _BLOCK_SIZE) for prompt in prompts)
    caches: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in checkpoint.spec.layers:
        mixer = layer.mixer
        shape = (blocks, mixer.num_kv_heads, _BLOCK_SIZE, mixer.head_dim)
        caches.append((torch.zeros(shape), torch.zeros(shape)) if mixer.source is None else caches[mixer.source])
    return caches

"""The model in plain PyTorch float32, layer by layer: what every artifact is compared with.

Weights are read from the checkpoint and dequantized exactly, one layer at a time, so the
reference of a large model needs one layer of memory. Activations are never quantized here.
"""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from ..artifacts.step_arrays import step_arrays, whole_prompts
from ..kernels.attention.reference import attention
from ..models.cache_groups import cache_groups
from ..models.checkpoint import Checkpoint
from ..models.decoder import Decoder, Layer
from ..models.step import Step
from .recipes import dequantize

_BLOCK_SIZE = 16


@torch.no_grad()
def reference_logits(checkpoint: Checkpoint, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Logits after every token of every prompt, each [len(prompt), V] float32."""
    config = checkpoint.config
    with torch.device("meta"):
        model = Decoder(config).eval()
    sizes = {group.name: _BLOCK_SIZE for group in cache_groups(config)}
    pieces = whole_prompts(prompts, sizes)
    step = Step.of({name: torch.from_numpy(array) for name, array in step_arrays(pieces, sizes).items()})
    hidden_TH = F.embedding(step.tokens, _read(checkpoint, "embed.weight"))
    cos, sin = functional_call(model.rope, {"inv_freq": Decoder.constants(config)["rope.inv_freq"]}, (step.positions,))
    blocks = sum(-(-len(prompt) // _BLOCK_SIZE) for prompt in prompts)
    cache_shape = (blocks, config.num_kv_heads, _BLOCK_SIZE, config.head_dim)
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        layer.attention.attend = attention
        caches = (torch.zeros(cache_shape), torch.zeros(cache_shape))
        hidden_TH = functional_call(layer, _parameters(checkpoint, layer, f"layers.{index}."), (hidden_TH, cos, sin, step, caches))
    hidden_TH = functional_call(model.norm, _parameters(checkpoint, model.norm, "norm."), (hidden_TH,))
    logits_TV = F.linear(hidden_TH, _read(checkpoint, "embed.weight" if model.head is None else "head.weight"))
    return list(logits_TV.split([len(prompt) for prompt in prompts]))


def _read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    loaded = checkpoint.read(name)
    return dequantize(loaded.format, loaded.data)


def _parameters(checkpoint: Checkpoint, module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {name: _read(checkpoint, prefix + name) for name, _ in module.named_parameters()}

"""The model in plain PyTorch float32, layer by layer: what every artifact is compared with.

Weights are read from the checkpoint and dequantized exactly, one layer at a time, so the
reference of a large model needs one layer of memory. Activations are never quantized here.
"""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from ..kernels.attention.reference import attention
from ..models.checkpoint import Checkpoint
from ..models.decoder import Decoder, Layer
from .recipes import dequantize

_BLOCK_SIZE = 16


@torch.no_grad()
def reference_logits(checkpoint: Checkpoint, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Logits after every token of every prompt, each [len(prompt), V] float32."""
    config = checkpoint.config
    with torch.device("meta"):
        model = Decoder(config).eval()
    lengths = [len(prompt) for prompt in prompts]
    step = _step_inputs(lengths)
    hidden_TH = F.embedding(torch.tensor([token for prompt in prompts for token in prompt]), _read(checkpoint, "embed.weight"))
    cos, sin = functional_call(model.rope, {"inv_freq": Decoder.constants(config)["rope.inv_freq"]}, (step["positions"],))
    cache_shape = (int(step["block_table"].max()) + 1, config.num_kv_heads, _BLOCK_SIZE, config.head_dim)
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        layer.attention.attend = attention
        caches = (torch.zeros(cache_shape), torch.zeros(cache_shape))
        attention_inputs = (step["query_start"], step["seq_lens"], step["block_table"], step["slots"], caches)
        hidden_TH = functional_call(layer, _parameters(checkpoint, layer, f"layers.{index}."), (hidden_TH, cos, sin, *attention_inputs))
    hidden_TH = functional_call(model.norm, _parameters(checkpoint, model.norm, "norm."), (hidden_TH,))
    logits_TV = F.linear(hidden_TH, _read(checkpoint, "embed.weight" if model.head is None else "head.weight"))
    return list(logits_TV.split(lengths))


def _read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    loaded = checkpoint.read(name)
    return dequantize(loaded.format, loaded.data)


def _parameters(checkpoint: Checkpoint, module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {name: _read(checkpoint, prefix + name) for name, _ in module.named_parameters()}


def _step_inputs(lengths: list[int]) -> dict[str, torch.Tensor]:
    """One ragged prefill of sequences of these lengths, each in blocks of its own."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    blocks = [-(-length // _BLOCK_SIZE) for length in lengths]
    first_block = torch.tensor([sum(blocks[:index]) for index in range(len(lengths))])
    table = first_block[:, None] + torch.arange(max(blocks))
    slots = positions + (first_block * _BLOCK_SIZE).repeat_interleave(torch.tensor(lengths))
    inputs = {
        "positions": positions,
        "query_start": torch.cat([torch.zeros(1), torch.tensor(lengths).cumsum(0)]),
        "seq_lens": torch.tensor(lengths),
        "block_table": table,
        "slots": slots,
    }
    return {name: value.to(torch.int32) for name, value in inputs.items()}

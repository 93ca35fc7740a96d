"""Loading a checkpoint into an eager `Decoder`."""

import gguf
import torch

from engine.models.checkpoint import Checkpoint, LoadedTensor
from engine.models.decoder import Decoder, constants


def load_decoder(checkpoint: Checkpoint) -> Decoder:
    """A float32 decoder with the checkpoint's weights, quantized ones dequantized by the `gguf` package."""
    with torch.device("meta"):
        decoder = Decoder(checkpoint.spec)
    weights = {name: to_float32(checkpoint.read(name)) for name in checkpoint.parameters}
    decoder.load_state_dict(weights | constants(checkpoint.spec), assign=True)
    return decoder.eval()


def to_float32(tensor: LoadedTensor) -> torch.Tensor:
    if tensor.format in ("f32", "f16", "bf16"):
        return tensor.data.to(torch.float32)
    return torch.from_numpy(gguf.quants.dequantize(tensor.data.numpy(), gguf.GGMLQuantizationType[tensor.format.upper()]))

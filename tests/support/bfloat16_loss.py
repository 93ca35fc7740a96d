"""What `transformers` computes of a checkpoint, and how much of it bfloat16 loses."""

from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray


@torch.no_grad()
def logits_and_loss(checkpoint: Path, prompts: list[list[int]]) -> tuple[list[NDArray[np.float32]], float]:
    """Logits [T, V] of every prompt in float32, and how far any of them is from that of the same model with all of it in bfloat16."""
    exact, rounded = (
        transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, attn_implementation="eager")
        for dtype in (torch.float32, torch.bfloat16)
    )
    logits = [exact(torch.tensor([prompt])).logits[0] for prompt in prompts]
    losses = [(whole - rounded(torch.tensor([prompt])).logits[0]).abs().max() for whole, prompt in zip(logits, prompts, strict=True)]
    return [whole.numpy() for whole in logits], float(max(losses))

"""What a step has to read from memory."""

from math import prod

from ..artifacts import ExpertsInfo, Manifest
from ..artifacts.manifest import DTYPE_BYTES


def kv_bytes_read(manifest: Manifest, context: int) -> int:
    """Bytes of keys and values, or of latents, that a new token of a sequence of `context` tokens reads."""
    return sum(group.seen(context) * group.bytes_per_block // group.block_size for group in manifest.caches)


def weight_bytes_per_step(manifest: Manifest, tokens: int) -> int:
    """Bytes of weights that a step of `tokens` tokens reads: all but embedding tables in which it only looks rows up, and of a
    mixture's experts as many as the tokens are expected to choose."""
    uses = [name for call in manifest.step.calls for name in call.inputs]
    lookup_only = {name for name in ("embed.weight", "layer_inputs.embed.weight") if uses.count(f"weight:{name}") == 1}
    return round(
        sum(
            prod(weight.shape) * DTYPE_BYTES[weight.dtype] * (share_chosen(weight.experts, tokens) if weight.experts else 1)
            for name, weight in manifest.weights.items()
            if name not in lookup_only
        )
    )


def share_chosen(experts: ExpertsInfo, tokens: int) -> float:
    """The expected share of a mixture's experts that compute one or more of `tokens` tokens, 0 to 1.

    As if every token chose k of the E experts by itself, each as likely as another: one that a token leaves out with probability 1 - k / E
    is left out by all with (1 - k / E) ** tokens. Real routers prefer some experts, so several tokens read less.
    """
    chosen = experts.count * (1 - (1 - experts.chosen / experts.count) ** tokens)
    return (chosen + experts.shared * (tokens > 0)) / (experts.count + experts.shared)

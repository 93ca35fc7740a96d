"""`engine verify DIR --against CHECKPOINT`: how far the artifact's numbers are from the model's.

The artifact runs as it would be served, one token at a time or a whole text, in a process of its own; the
reference is the checkpoint in plain PyTorch float32, with quantized blocks dequantized exactly.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from ..artifacts import Manifest, PooledInfo, load_manifest
from ..errors import Misfit, MismatchError
from ..models.checkpoint import Checkpoint
from ..models.open import open_checkpoint
from .new_manifest import pooled_info
from .reference import reference_logits
from .run_artifact import artifact_logits
from .tokens_of_text import whole_texts_tokenizer
from .verify_texts import TextComparison, compare_texts

TEXTS = (
    "The lighthouse keeper wrote down the weather every evening: wind from the west, rain before midnight, and a ship that did not answer. "
    "In the morning the sea was flat, and there was nothing on it.",
    "def moving_average(values, width):\n    total = sum(values[:width])\n    yield total / width\n"
    "    for old, new in zip(values, values[width:]):\n"
    "        total += new - old\n        yield total / width\n",
    "Water boils at 100 degrees Celsius at sea level. On a mountain of 3,000 metres it boils at about 90, because the air presses less. "
    "That is why an egg takes longer there.",
    "User: What should I pack for three days in Lisbon in April?\n"
    "Assistant: Light layers, comfortable shoes for the hills, and a thin rain jacket.",
)
"""Prose, code, facts with numbers, and dialogue: every position of each is compared."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """KL divergence of the artifact's next-token distribution from the reference's, in nats, over
    `positions` positions; top1: share of positions with the same most likely token."""

    positions: int
    kl_mean: float
    kl_p99: float
    kl_max: float
    top1: float
    max_error: float

    def check(self, max_kl: float) -> None:
        """Raises MismatchError if the mean divergence is above max_kl nats, or no number."""
        if not self.kl_mean <= max_kl:
            drift = Misfit(field="mean KL divergence", artifact=f"{self.kl_mean:.3g} nats", machine=f"at most {max_kl:g}")
            raise MismatchError(
                "the artifact does not compute what the checkpoint does",
                [drift],
                other="wanted",
                hint="compare with the checkpoint it was built from; quantized weights diverge more, and need a higher --max-kl",
            )

    def __str__(self) -> str:
        return "\n".join(
            [
                f"positions compared    {self.positions}",
                f"KL divergence (nats)  mean {self.kl_mean:.3g}, p99 {self.kl_p99:.3g}, max {self.kl_max:.3g}",
                f"same top token        {self.top1:.2%}",
                f"largest logit error   {self.max_error:.3g}",
            ]
        )


def compare(directory: Path, model: str, *, ignored: Collection[str] = ()) -> Comparison | TextComparison:
    """Compare the artifact at `directory` with the checkpoint `model` on TEXTS. ignored: as of `open_checkpoint`.

    Raises MismatchError if they are not the same model, and what opening either of them raises.
    """
    manifest = load_manifest(directory)
    checkpoint = open_checkpoint(model, ignored=ignored)
    checkpoint.spec = checkpoint.spec.for_context(manifest.model.max_context)
    _check_same_model(checkpoint, manifest)
    tokenizer = whole_texts_tokenizer(checkpoint)
    if manifest.pooled is not None:
        return compare_texts(directory, manifest.pooled, checkpoint, tokenizer, TEXTS)
    prompts = [tokenizer.encode(text).ids[: manifest.model.max_context] for text in TEXTS]
    return compare_logits(torch.cat(reference_logits(checkpoint, prompts)), torch.cat(artifact_logits(directory, prompts, last_only=False)))


def compare_logits(reference_TV: torch.Tensor, artifact_TV: torch.Tensor) -> Comparison:
    """Figures over all rows of two [T, V] float32 logits."""
    expected, actual = reference_TV.double().log_softmax(-1), artifact_TV.double().log_softmax(-1)
    kl_T = (expected.exp() * (expected - actual)).sum(-1).clamp_min(0)
    return Comparison(
        positions=len(kl_T),
        kl_mean=kl_T.mean().item(),
        kl_p99=kl_T.quantile(0.99).item(),
        kl_max=kl_T.max().item(),
        top1=(expected.argmax(-1) == actual.argmax(-1)).double().mean().item(),
        max_error=(reference_TV - artifact_TV).abs().max().item(),
    )


def _check_same_model(checkpoint: Checkpoint, manifest: Manifest) -> None:
    spec, model = checkpoint.spec, manifest.model
    rows = [
        ("vocab_size", model.vocab_size, spec.vocab_size),
        ("num_layers", model.num_layers, len(spec.layers)),
        ("hidden_size", model.hidden_size, spec.hidden_size),
        ("makes", _made(manifest.pooled), _made(pooled_info(checkpoint))),
    ]
    misfits = [Misfit(field=name, artifact=str(ours), machine=str(theirs)) for name, ours, theirs in rows if ours != theirs]
    if misfits:
        raise MismatchError(
            f"{checkpoint.name} is not the model of this artifact",
            misfits,
            other="checkpoint",
            hint="compare with the checkpoint it was built from",
        )


def _made(info: PooledInfo | None) -> str:
    """What the rows of a model's result are."""
    if info is None:
        return "tokens"
    return f"{'vectors' if info.task == 'embed' else 'scores'} of {info.size}, pooled by {info.pooling}"

"""`engine verify --against` of a model that makes vectors or scores of whole texts."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from ..artifacts import PooledInfo
from ..errors import Misfit, MismatchError
from ..models.checkpoint import Checkpoint
from .reference import reference_pooled
from .run_artifact import artifact_logits


@dataclass(frozen=True, kw_only=True)
class TextComparison:
    """How far `count` vectors or scores of the artifact are from the reference's.

    The distance of two vectors is 1 minus their cosine, that of two scores their difference as they are served. max_error: the
    largest difference of two numbers before vectors are scaled to length 1, and scores go through their activation.
    """

    task: str
    count: int
    distance_mean: float
    distance_max: float
    max_error: float

    def check(self, max_distance: float) -> None:
        """Raises MismatchError if the mean distance is above max_distance, or no number."""
        if not self.distance_mean <= max_distance:
            drift = Misfit(field=f"mean {self._distance}", artifact=f"{self.distance_mean:.3g}", machine=f"at most {max_distance:g}")
            raise MismatchError(
                "the artifact does not compute what the checkpoint does",
                [drift],
                other="wanted",
                hint="compare with the checkpoint it was built from; quantized weights drift more, and need a higher --max-distance",
            )

    @property
    def _distance(self) -> str:
        return "cosine distance" if self.task == "embed" else "score difference"

    def __str__(self) -> str:
        compared = "texts compared" if self.task == "embed" else "pairs compared"
        return "\n".join(
            [
                f"{compared:<21} {self.count}",
                f"{self._distance:<21} mean {self.distance_mean:.3g}, max {self.distance_max:.3g}",
                f"largest error         {self.max_error:.3g}",
            ]
        )


def compare_texts(
    directory: Path, info: PooledInfo, checkpoint: Checkpoint, tokenizer: Tokenizer, texts: tuple[str, ...]
) -> TextComparison:
    """The artifact at `directory`, which makes what `info` says, and its checkpoint, on these texts or on every pair of them."""
    pairs = [(text,) for text in texts] if info.task == "embed" else list(product(texts, texts))
    encoded = [tokenizer.encode(*pair) for pair in pairs]
    most = checkpoint.spec.max_context
    prompts = [each.ids[:most] for each in encoded]
    starts = [each.type_ids.index(1) if 1 in each.type_ids else 0 for each in encoded]
    artifact = torch.cat(artifact_logits(directory, prompts, last_only=True, pair_starts=starts))
    return compare_rows(info, reference_pooled(checkpoint, prompts, starts), artifact)


def compare_rows(info: PooledInfo, reference_TK: torch.Tensor, artifact_TK: torch.Tensor) -> TextComparison:
    """Figures over the rows of two [T, size] float32, as pooling gives them."""
    expected, actual = reference_TK.double(), artifact_TK.double()
    if info.task == "embed":
        distance_T = (1 - F.cosine_similarity(expected, actual)).clamp_min(0)
    else:
        activation = torch.sigmoid if info.activation == "sigmoid" else torch.nn.Identity()
        distance_T = (activation(expected) - activation(actual)).abs().squeeze(-1)
    return TextComparison(
        task=info.task,
        count=len(distance_T),
        distance_mean=distance_T.mean().item(),
        distance_max=distance_T.max().item(),
        max_error=(expected - actual).abs().max().item(),
    )

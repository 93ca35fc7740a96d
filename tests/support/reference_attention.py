"""What eager models take in place of kernels that only artifacts have: the operators' references."""

import pytest

from engine.kernels import mean_pool
from engine.kernels.attention import latent, reference
from engine.models.parts import attention, latent_attention, pooling


def use_reference_attention(patch: pytest.MonkeyPatch) -> None:
    """Models that are made from now on compute attention, and means, by their references, until `patch` is undone."""
    patch.setattr(attention, "attention", reference.attention)
    patch.setattr(attention, "bidirectional_attention", reference.bidirectional_attention)
    patch.setattr(latent_attention, "expanded_attention", latent.expanded_attention)
    patch.setattr(pooling, "mean_pool", mean_pool.reference)

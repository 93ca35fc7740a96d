"""The attention of eager decoders: the operator's reference in place of its kernel, which only artifacts have."""

import pytest

from engine.kernels.attention import reference
from engine.models.parts import attention


def use_reference_attention(patch: pytest.MonkeyPatch) -> None:
    """Decoders that are made from now on compute attention by its reference, until `patch` is undone."""
    patch.setattr(attention, "attention", reference.attention)

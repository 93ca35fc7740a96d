"""Every family that is accepted, compiled for real: its artifact's logits are those of `transformers`."""

from pathlib import Path

import pytest
from families import NO_REFERENCE, VARIANTS, causal_families
from whole_artifacts import build_tiny, check_every_token

from engine.errors import UnsupportedModelError

pytestmark = pytest.mark.exhaustive


@pytest.mark.parametrize("name", [name for name in (*causal_families(), *VARIANTS) if name not in NO_REFERENCE])
def test_an_artifact_equals_transformers(name: str, store: Path, tmp_path: Path) -> None:
    try:
        checkpoint, artifact = build_tiny(name, tmp_path, store)
    except UnsupportedModelError as error:
        pytest.skip(f"refused: {error.message}")
    check_every_token(checkpoint, artifact)

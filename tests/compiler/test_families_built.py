"""Every family that is accepted, compiled for real: its artifact's logits are those of `transformers`."""

from pathlib import Path

import pytest
import torch
from families import GENERIC, NO_REFERENCE, VARIANTS, causal_families, reference_logits, write_tiny_checkpoint

from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.compiler.run_artifact import artifact_logits
from engine.errors import UnsupportedModelError

TOKENS = torch.randint(3, GENERIC["vocab_size"], (60,), generator=torch.Generator().manual_seed(1)).tolist()

pytestmark = pytest.mark.exhaustive


@pytest.mark.parametrize("name", [name for name in (*causal_families(), *VARIANTS) if name not in NO_REFERENCE])
def test_an_artifact_equals_transformers(name: str, store: Path, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(name, tmp_path / "model")
    artifact = tmp_path / "artifact"
    try:
        build(BuildOptions(model=str(checkpoint), output=artifact, store=store))
    except UnsupportedModelError as error:
        pytest.skip(f"refused: {error.message}")
    expected, rounding = reference_logits(checkpoint, TOKENS)
    (whole,) = artifact_logits(artifact, [TOKENS], last_only=False)
    (last,) = artifact_logits(artifact, [TOKENS], last_only=True)
    assert float((whole - expected).abs().max()) <= 4 * max(rounding, 1e-6 * float(expected.abs().max()))
    assert torch.equal(whole[-1], last[0])

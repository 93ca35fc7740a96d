"""`engine verify --against`: how far an artifact is from a checkpoint, and where that is too far."""

from pathlib import Path

import pytest
import torch
from random_checkpoints import write_random_checkpoint

from engine.cli import main
from engine.compiler.verify import compare_logits
from engine.errors import MismatchError


def test_a_limit_fails_what_is_above_it(
    tiny_artifact: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def verify(checkpoint: Path, *limit: str) -> int:
        return main(["verify", str(tiny_artifact), "--against", str(checkpoint), *limit])

    other = write_random_checkpoint("llama", tmp_path / "other", seed=9)
    assert verify(tiny_checkpoint, "--max-kl", "0.001") == 0
    assert verify(other) == 0
    assert verify(other, "--max-kl", "0.001") == 7
    out, err = capsys.readouterr()
    assert out.count("KL divergence (nats)") == 3, "the figures are printed whatever the limit says"
    assert "error: the artifact does not compute what the checkpoint does" in err
    assert "at most 0.001" in err


def test_what_is_no_number_is_above_every_limit() -> None:
    logits = torch.randn(3, 8)
    compare_logits(logits, logits).check(1e-9)
    with pytest.raises(MismatchError, match="nan nats"):
        compare_logits(logits, logits * float("nan")).check(1e9)


def test_a_limit_needs_something_to_compare_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path), "--max-kl", "1"]) == 2
    assert "--against" in capsys.readouterr().err

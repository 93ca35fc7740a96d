"""`engine verify --against`: how far an artifact is from a checkpoint, and where that is too far."""

from pathlib import Path

import pytest
import torch
from random_checkpoints import write_random_checkpoint
from text_checkpoints import write_cross_encoder, write_embedder

from engine.artifacts import PooledInfo
from engine.cli import main
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.compiler.verify import compare_logits
from engine.compiler.verify_texts import compare_rows
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


@pytest.mark.parametrize("flag", ["--max-kl", "--max-distance"])
def test_a_limit_needs_something_to_compare_with(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path), flag, "1"]) == 2
    assert "--against" in capsys.readouterr().err


def test_vectors_are_compared_by_their_cosine(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def verify(checkpoint: Path, *limit: str) -> int:
        return main(["verify", str(tmp_path / "artifact"), "--against", str(checkpoint), *limit])

    checkpoint = write_embedder("bert", tmp_path / "model")
    build(BuildOptions(model=str(checkpoint), output=tmp_path / "artifact", store=store))
    assert verify(checkpoint, "--max-distance", "0.0001") == 0
    assert verify(write_embedder("bert", tmp_path / "other", seed=9), "--max-distance", "0.0001") == 7
    out, err = capsys.readouterr()
    assert out.count("texts compared        4\ncosine distance       mean ") == 2, "the figures are printed whatever the limit says"
    assert "mean cosine distance" in err
    assert verify(checkpoint, "--max-kl", "1") == 2
    assert "--max-kl is of next tokens, and model makes none\nhint: give --max-distance" in capsys.readouterr().err
    assert verify(write_cross_encoder("bert", tmp_path / "scorer")) == 7
    assert "vectors of 60, pooled by mean  scores of 1, pooled by cls" in capsys.readouterr().err


def test_a_distance_of_next_tokens_is_refused(tiny_artifact: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tiny_artifact), "--against", str(tiny_checkpoint), "--max-distance", "1"]) == 2
    assert "hint: give --max-kl" in capsys.readouterr().err


def test_scores_are_compared_as_they_are_served() -> None:
    info = PooledInfo(task="score", size=1, pooling="cls", normalize=False, activation="sigmoid", prompts={}, default_prompt="")
    comparison = compare_rows(info, torch.tensor([[0.0], [9.0]]), torch.tensor([[0.0], [11.0]]))
    assert comparison.max_error == 2
    assert 0 < comparison.distance_max < 0.001
    assert comparison.distance_mean == comparison.distance_max / 2
    assert "pairs compared        2\nscore difference      mean " in str(comparison)
    with pytest.raises(MismatchError, match="nan"):
        compare_rows(info, torch.tensor([[0.0]]), torch.tensor([[float("nan")]])).check(9)

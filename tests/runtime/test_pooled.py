"""A row of the model's result becomes a vector, or a score."""

import math

import msgspec
import numpy as np
import pytest

from engine.artifacts import PooledInfo
from engine.protocol import Embed
from engine.runtime.pooled import vector_of

ROW = np.array([3.0, 4.0, 12.0], np.float32)
EMBEDS = PooledInfo(task="embed", size=3, pooling="mean", normalize=True)
SCORES = PooledInfo(task="score", size=1, pooling="cls", activation="sigmoid")


def values(row: np.ndarray, info: PooledInfo, **asked: object) -> list[float]:
    request = msgspec.structs.replace(Embed("id", [1]), **asked)
    found: list[float] = np.frombuffer(vector_of(row, info, request).vector, "<f4").tolist()
    return found


def test_a_vector_has_length_1_unless_it_is_raw() -> None:
    assert values(ROW, EMBEDS) == pytest.approx([3 / 13, 4 / 13, 12 / 13])
    assert values(ROW, EMBEDS, dimensions=2) == pytest.approx([0.6, 0.8])
    assert values(ROW, EMBEDS, raw=True) == ROW.tolist()
    assert values(ROW, EMBEDS, raw=True, dimensions=2) == [3.0, 4.0]


@pytest.mark.parametrize("logit", [-100.0, -2.0, 0.0, 2.0, 100.0])
def test_a_score_goes_through_the_sigmoid_unless_it_is_raw(logit: float) -> None:
    row = np.array([logit], np.float32)
    assert values(row, SCORES) == pytest.approx([1 / (1 + math.exp(-logit))])
    assert values(row, SCORES, raw=True) == [logit]


def test_what_is_not_finite_is_no_vector() -> None:
    assert vector_of(np.array([1.0, np.nan], np.float32), EMBEDS, Embed("id", [1])).error

"""What a checkpoint recommends for choosing tokens."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.artifacts import SamplingDefaults
from engine.errors import CheckpointError
from engine.models.sampling_defaults import sampling_defaults


def written(directory: Path, values: dict[str, Any]) -> Path:
    (directory / "generation_config.json").write_text(json.dumps(values))
    return directory


def test_what_the_file_says_and_nothing_else(tmp_path: Path) -> None:
    values = {"temperature": 0.6, "top_k": 20.0, "top_p": 0.95, "repetition_penalty": 1.05, "max_new_tokens": 2048, "min_p": None}
    found = sampling_defaults(written(tmp_path, {**values, "do_sample": True, "eos_token_id": [1, 2], "_from_model_config": True}))
    assert found == {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05, "max_new_tokens": 2048}
    assert isinstance(found["top_k"], int)
    assert msgspec.to_builtins(msgspec.convert(found, SamplingDefaults)) == found


def test_without_the_file_nothing(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == {}
    assert msgspec.to_builtins(msgspec.convert({}, SamplingDefaults)) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", "hot"),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 0.5),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
    ],
)
def test_what_means_nothing_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=name) as caught:
        sampling_defaults(written(tmp_path, {name: value}))
    assert caught.value.hint

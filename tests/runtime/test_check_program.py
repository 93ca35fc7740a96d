"""check_program: what an operator's call must bring, and what it may leave out."""

from pathlib import Path

import msgspec
import pytest
from rich_artifact import WEIGHT, write_rich_artifact

from engine.artifacts import Call, Manifest
from engine.errors import ArtifactError
from engine.kernels.cut_operators import ATTENTION
from engine.runtime.check_program import check_program


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_rich_artifact(tmp_path / "artifact")


def check(manifest: Manifest, index: int, **changes: object) -> None:
    """The program with one of its calls changed."""
    calls: list[Call] = list(manifest.step.calls)
    calls[index] = msgspec.structs.replace(calls[index], **changes)
    program = msgspec.structs.replace(manifest.step, calls=calls)
    check_program(program, manifest.segments, [f"weight:{WEIGHT}", "cache:full.0.k", "cache:full.0.v"])


def test_optional_tensors_may_be_absent(manifest: Manifest) -> None:
    inputs = manifest.step.calls[1].inputs
    check(manifest, 1)
    check(manifest, 1, inputs=[*inputs[: len(ATTENTION.tensors)], *[""] * len(ATTENTION.optional)])


@pytest.mark.parametrize("place", range(len(ATTENTION.tensors)))
def test_others_may_not(manifest: Manifest, place: int) -> None:
    inputs = list(manifest.step.calls[1].inputs)
    inputs[place] = ""
    with pytest.raises(ArtifactError, match=r"calls engine\.attention with .* does not take"):
        check(manifest, 1, inputs=inputs)


def test_counts_must_fit(manifest: Manifest) -> None:
    call = manifest.step.calls[1]
    changes = ({"inputs": call.inputs[:-1]}, {"inputs": [*call.inputs, ""]}, {"scalars": call.scalars[:-1]}, {"target": "engine.other"})
    for change in changes:
        with pytest.raises(ArtifactError, match="does not take"):
            check(manifest, 1, **change)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", float("nan")),
        ("scale", float("inf")),
        ("scale", 10**400),
        ("window", 2**63),
        ("window", -(2**63) - 1),
        ("window", 1e300),
        ("window", 2.5),
        ("chunk", float("nan")),
        ("chunk", float("inf")),
        ("norm_after_rope", 2),
        ("norm_after_rope", 0.5),
    ],
)
def test_numbers_are_what_the_operator_can_take(manifest: Manifest, name: str, value: float) -> None:
    scalars = list(manifest.step.calls[1].scalars)
    scalars[list(ATTENTION.scalars).index(name)] = value
    with pytest.raises(ArtifactError, match=rf"calls engine\.attention with {name} = .*, which it does not take"):
        check(manifest, 1, scalars=scalars)


def test_a_segment_has_no_absent_tensor(manifest: Manifest) -> None:
    with pytest.raises(ArtifactError, match="does not hold"):
        check(manifest, 0, inputs=["input:tokens", ""])

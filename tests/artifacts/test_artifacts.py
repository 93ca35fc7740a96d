"""Targets and the manifest as values."""

from pathlib import Path

import pytest

from engine.artifacts import Target, load_manifest
from engine.artifacts.manifest import Manifest
from engine.errors import UsageError


@pytest.mark.parametrize(
    "text",
    [
        "cpu-x86-64-v3",
        "cpu-x86-64-v4",
        "cpu-x86-64-v4+avx512_vnni",
        "cpu-x86-64-v3+avx_vnni",
        "cpu-x86-64-v4+amx_int8+avx512_bf16+avx512_vnni",
    ],
)
def test_targets_round_trip(text: str) -> None:
    assert str(Target.parse(text)) == text


def test_cpu_is_what_this_machine_is() -> None:
    v3 = Target(level="x86-64-v3").required_flags
    v4 = Target(level="x86-64-v4", extras=("avx512_vnni",)).required_flags
    assert str(Target.parse("cpu", machine_flags=[*v3, "avx_vnni", "sse"])) == "cpu-x86-64-v3+avx_vnni"
    assert str(Target.parse("cpu", machine_flags=v4)) == "cpu-x86-64-v4+avx512_vnni"
    assert Target.parse("cpu", machine_flags=v4).misfits(v4) == []
    with pytest.raises(UsageError, match="below x86-64-v3"):
        Target.parse("cpu", machine_flags=["sse2"])


def test_amx_is_taken_where_all_that_it_needs_is_there() -> None:
    target = Target.parse("cpu-x86-64-v4+avx512_vnni+amx_int8")
    assert {"amx_tile", "amx_int8", "avx512_vnni"} <= set(target.required_flags)
    assert target.compiler_flags == ("-march=x86-64-v4", "-mamx-tile", "-mamx-int8", "-mavx512vnni")
    assert Target.parse("cpu", machine_flags=target.required_flags) == target
    for hidden in ("amx_tile", "amx_int8", "avx512_vnni"):
        flags = set(target.required_flags) - {hidden}
        assert "amx_int8" not in Target.parse("cpu", machine_flags=flags).extras
        (misfit,) = target.misfits(flags)
        assert misfit.machine == f"lacks {hidden}"


@pytest.mark.parametrize(
    ("text", "lacking"),
    [
        ("cpu-x86-64-v4+amx_int8", "avx512_vnni"),
        ("cpu-x86-64-v3+avx512_vnni+amx_int8", "x86-64-v4"),
        ("cpu-x86-64-v3+amx_int8", "x86-64-v4 and avx512_vnni"),
    ],
)
def test_amx_alone_is_refused_with_the_target_to_name(text: str, lacking: str) -> None:
    with pytest.raises(UsageError, match=f"amx_int8 is of use only with {lacking}\n") as caught:
        Target.parse(text)
    assert "cpu-x86-64-v4+avx512_vnni+amx_int8" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["", "gpu", "x86-64-v3", "cpu-x86-64-v9", "cpu+avx512_vnni", "cpu-x86-64-v3+warp", "sm90"])
def test_unknown_targets_name_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Target.parse(text, machine_flags=Target(level="x86-64-v3").required_flags)
    assert "cpu-x86-64-v3" in (caught.value.hint or "")


def test_a_manifest_round_trips(tiny_artifact: Path) -> None:
    import msgspec

    manifest = load_manifest(tiny_artifact)
    assert msgspec.json.decode(manifest.encode(), type=Manifest) == manifest
    assert manifest.encode() == (tiny_artifact / "manifest.json").read_bytes()


def test_the_memory_plan_bounds_the_activations(tiny_artifact: Path) -> None:
    manifest = load_manifest(tiny_artifact)
    assert manifest.memory.activations.keys() == {"T", "R"}
    assert manifest.memory.activations["R"] >= 4 * manifest.model.vocab_size
    assert manifest.memory.activations["T"] >= 4 * manifest.model.hidden_size
    assert manifest.memory.weight_bytes == sum(info.bytes for name, info in manifest.files.items() if name.startswith("weights/"))

"""What a dry run traces in place of a model has the segments of the model, and its weights, counted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from random_checkpoints import write_random_checkpoint

from engine.artifacts import parse_target, this_machine_flags
from engine.compiler.fewer_layers import FewerLayers, fewer_layers
from engine.compiler.pack import packed_bytes
from engine.compiler.progress import Reporter
from engine.compiler.step_program import StepProgram, Wanted, make_program
from engine.compiler.target_kind import kind_of
from engine.compiler.weight_formats import choose_formats
from engine.models.open import open_checkpoint
from engine.models.parts.layer_inputs import LayerInputsSpec
from engine.models.parts.norm import NormSpec


def wanted(family: str, layers: int, target: str, quantize: str, directory: Path) -> Wanted:
    checkpoint = open_checkpoint(str(write_random_checkpoint(family, directory / family, num_hidden_layers=layers)), weights=False)
    kind = kind_of(parse_target(target, machine_flags=this_machine_flags()))
    formats = choose_formats(checkpoint, quantize, kind.layout)
    kv_dtype = kind.kv_dtype("auto", checkpoint, formats)
    return Wanted.of(checkpoint, formats, kv_dtype=kv_dtype, kind=kind, disable_pass=())


def segments(program: StepProgram) -> set[str]:
    return set(program.parts.forms)


def program(of: Wanted) -> StepProgram:
    return make_program(of, None, Reporter(quiet=True))


@pytest.mark.parametrize(
    ("family", "layers", "traced", "target", "quantize"),
    [
        ("llama", 4, (3, 1), "cpu", "none"),
        ("llama", 4, (3, 1), "sm90", "none"),
        ("qwen3", 4, (3, 1), "sm90", "int4"),
        ("qwen2", 5, (1, 1, 2, 1), "cpu", "int8"),  # the first two layers have no window
    ],
)
def test_the_segments_and_weights_are_those_of_the_model(
    family: str, layers: int, traced: tuple[int, ...], target: str, quantize: str, tmp_path: Path
) -> None:
    whole = wanted(family, layers, target, quantize, tmp_path)
    fewer = fewer_layers(whole)
    assert fewer.stands_for == traced
    ours, theirs = program(fewer.wanted), program(whole)
    assert segments(ours) == segments(theirs)
    assert sum(fewer.times(weight) for weight in ours.weights) == len(theirs.weights)
    assert sum(fewer.times(weight) * packed_bytes(weight) for weight in ours.weights) == sum(map(packed_bytes, theirs.weights))


def test_no_layer_is_left_out_where_inputs_are_made_for_each(tmp_path: Path) -> None:
    whole = wanted("llama", 4, "cpu", "none", tmp_path)
    inputs = LayerInputsSpec(size=8, activation="silu", norm=NormSpec(eps=1e-5), post_norm=NormSpec(eps=1e-5))
    whole = replace(whole, spec=replace(whole.spec, layer_inputs=inputs))
    assert fewer_layers(whole) == FewerLayers.none_left_out(whole)


@pytest.mark.parametrize(("family", "layers"), [("llama", 1), ("smollm3", 5)])
def test_what_is_like_no_neighbour_is_kept(family: str, layers: int, tmp_path: Path) -> None:
    """SmolLM3 here has a rotary embedding in every second layer."""
    whole = wanted(family, layers, "cpu", "none", tmp_path)
    assert fewer_layers(whole) == FewerLayers.none_left_out(whole)


def test_a_layer_that_others_read_is_kept_and_found_under_its_new_number(tmp_path: Path) -> None:
    whole = wanted("llama", 8, "cpu", "none", tmp_path)
    sources: list[Any] = [{"source": 2 if index > 3 else None} for index in range(8)]
    layers = [replace(layer, mixer=replace(layer.mixer, **source)) for layer, source in zip(whole.spec.layers, sources, strict=True)]
    fewer = fewer_layers(replace(whole, spec=replace(whole.spec, layers=tuple(layers))))
    assert fewer.stands_for == (1, 1, 1, 1, 3, 1)
    assert [layer.mixer.source for layer in fewer.wanted.spec.layers] == [None, None, None, None, 2, 2]


def test_layers_whose_parameters_are_stored_otherwise_are_kept(tmp_path: Path) -> None:
    whole = wanted("llama", 5, "cpu", "int8", tmp_path)
    name = "layers.2.mlp.gate.weight"
    whole = Wanted(**{**vars(whole), "formats": {**whole.formats, name: "f32"}})
    fewer = fewer_layers(whole)
    assert fewer.stands_for == (1, 1, 1, 1, 1)
    assert {n: f for n, f in fewer.wanted.formats.items() if n.endswith("mlp.gate.weight")} == {
        f"layers.{index}.mlp.gate.weight": "f32" if index == 2 else "q8_0" for index in range(5)
    }
    assert segments(program(fewer.wanted)) == segments(program(whole))

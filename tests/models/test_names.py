"""Tables of tensor names, against the names that the `gguf` package uses; and what of a tensor a parameter takes, by small examples."""

from collections.abc import Callable
from typing import Any

import gguf
import pytest
import torch
from tiny_specs import NORM, tiny_layer, tiny_spec

from engine.errors import CheckpointError, UnsupportedModelError
from engine.models.architectures import gguf as gguf_tables
from engine.models.architectures import llama
from engine.models.architectures.registry import GGUF, spec_from_hf
from engine.models.checkpoint import LoadedTensor, parameter_shapes, taken
from engine.models.names import (
    Located,
    NameTable,
    RowsOf,
    Source,
    alternating_gate_up_of_experts,
    experts_of,
    fused_gate_up,
    fused_qkv,
    fused_qkv_by_group,
    gate_up_of_experts,
    halves_of_interleaved,
    locate,
    swapped_halves,
    tensor_of,
)
from engine.models.parts.attention import QKNormSpec
from engine.models.parts.mlp import MLPSpec
from engine.models.parts.moe import MoESpec, RouterSpec
from engine.models.parts.rope import RopeSpec
from engine.models.spec import HeadSpec, ModelSpec

EXPERTS = MoESpec(router=RouterSpec(experts=3, chosen=1), experts=MLPSpec(size=2))
SPEC = tiny_spec(*[tiny_layer()] * 12)
PARAMETERS = {
    "embed.weight": (300, 64),
    "norm.weight": (64,),
    "head.weight": (300, 64),
    "layers.0.attention.q.weight": (64, 64),
    "layers.11.mlp.up.weight": (96, 64),
}
TENSORS = [
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.11.mlp.up_proj.weight",
]


def names_of(located: dict[str, Located]) -> dict[str, str]:
    return {parameter: found.tensors[0] for parameter, found in located.items()}


class TestNames:
    def test_every_tensor_finds_its_parameter(self) -> None:
        located = locate(llama.NAMES, TENSORS, PARAMETERS, SPEC, "model")
        assert names_of(located) == dict(zip(PARAMETERS, TENSORS, strict=True))
        assert {name: found.shape for name, found in located.items()} == PARAMETERS
        assert all(found == Located(tensors=found.tensors, shape=found.shape) for found in located.values())

    @pytest.mark.parametrize("table", [llama.NAMES, gguf_tables.NAMES])
    def test_no_tensor_has_two_names(self, table: NameTable) -> None:
        assert len(set(table.sources.values())) == len(table.sources)

    @pytest.mark.parametrize(
        "name",
        [
            "model.layers.x.mlp.up_proj.weight",
            "model.layers.1.mlp.up_proj",
            "layers.1.mlp.up_proj.weight",
            "model.layers.{}.mlp.up_proj.weight",
        ],
    )
    def test_names_that_only_look_alike_are_not_known(self, name: str) -> None:
        with pytest.raises(CheckpointError, match="no place for"):
            locate(llama.NAMES, [*TENSORS, name], PARAMETERS, SPEC, "model")

    def test_a_layer_that_the_model_does_not_have_is_unused(self) -> None:
        with pytest.raises(CheckpointError, match=r"no place for: model\.layers\.12\.mlp\.up_proj\.weight"):
            locate(llama.NAMES, [*TENSORS, "model.layers.12.mlp.up_proj.weight"], PARAMETERS, SPEC, "model")

    def test_what_carries_nothing_is_passed_over_in_every_layer(self) -> None:
        nothing = [name.format(layer) for name in llama.IGNORED for layer in (0, 11)]
        assert names_of(locate(llama.NAMES, [*TENSORS, *nothing], PARAMETERS, SPEC, "model")).keys() == PARAMETERS.keys()

    def test_ten_names_and_a_count(self) -> None:
        extra = [f"extra.{index}.weight" for index in range(13)]
        with pytest.raises(CheckpointError) as caught:
            locate(llama.NAMES, [*TENSORS, *extra], PARAMETERS, SPEC, "model")
        assert "extra.9.weight and 3 more" in str(caught.value)
        assert "extra.10" not in str(caught.value)

    def test_a_missing_tensor_is_named_as_the_checkpoint_would(self) -> None:
        with pytest.raises(CheckpointError) as caught:
            locate(llama.NAMES, TENSORS[:-1], PARAMETERS, SPEC, "model")
        assert caught.value.message.splitlines()[1:] == ["  tensors that are missing: model.layers.11.mlp.up_proj.weight"]
        assert caught.value.hint

    def test_a_parameter_that_the_table_does_not_know_is_named_as_it_is(self) -> None:
        with pytest.raises(CheckpointError, match=r"missing: layers\.0\.mixer\.weight"):
            locate(llama.NAMES, TENSORS, PARAMETERS | {"layers.0.mixer.weight": (1,)}, SPEC, "model")

    @pytest.mark.parametrize(
        "present", [["lm_head.weight"], ["model.embed_tokens.weight"], ["lm_head.weight", "model.embed_tokens.weight"]]
    )
    def test_one_matrix_of_a_tied_model_under_either_name(self, present: list[str]) -> None:
        """Under both, the embedding's."""
        located = locate(llama.NAMES, present, {"embed.weight": (300, 64)}, SPEC, "model")
        assert names_of(located) == {"embed.weight": present[-1]}

    def test_a_tensor_by_another_name(self) -> None:
        table = NameTable(sources={"norm.weight": ("norm.weight", Source(tensor="norm.scale"), "ln.weight")})
        for name in ("norm.weight", "norm.scale", "ln.weight"):
            assert names_of(locate(table, [name], {"norm.weight": (64,)}, SPEC, "model")) == {"norm.weight": name}
        assert tensor_of(table, ["ln.weight", "norm.scale"], "norm.weight") == "norm.scale"
        assert tensor_of(table, ["ln.weight"], "head.weight") is None

    def test_other_names_are_numbered_too(self) -> None:
        table = NameTable(sources={"layers.{}.mlp.up.weight": ("a.{}.up", "b.{}.up")})
        assert names_of(locate(table, ["b.7.up"], {"layers.7.mlp.up.weight": (1,)}, SPEC, "model")) == {"layers.7.mlp.up.weight": "b.7.up"}


# By GGUF's name of a family, that of its directory, where no tensor is split or merged on the way.
SAME_TENSORS = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "command-r": "cohere",
    "olmo2": "olmo2",
    "exaone4": "exaone4",
    "nemotron": "nemotron",
    "starcoder2": "starcoder2",
    "stablelm": "stablelm",
    "granite": "granite",
    "hunyuan-dense": "hunyuan_v1_dense",
    "arcee": "arcee",
}


def tensors_of(table: NameTable) -> dict[str, str]:
    """The first of each parameter's."""
    firsts = {parameter: entry[0] if isinstance(entry, tuple) else entry for parameter, entry in table.sources.items()}
    return {parameter: entry.tensor if isinstance(entry, Source) else entry for parameter, entry in firsts.items()}


@pytest.mark.parametrize("architecture", SAME_TENSORS)
def test_gguf_names_translate_to_the_hugging_face_names_they_stand_for(architecture: str) -> None:
    (number,) = (number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    translate = gguf.get_tensor_name_map(number, 1)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 300}
    spec, entry = spec_from_hf(sizes | {"model_type": SAME_TENSORS[architecture], "num_key_value_heads": 2})
    ours, theirs = tensors_of(GGUF[architecture].names_of(spec)), tensors_of(entry.names_of(spec))
    patterns = [parameter.replace(".0.", ".{}.") for parameter in parameter_shapes(spec)]
    translated = {parameter: translate.get_name(theirs[parameter].format(0), (".weight", ".bias")) for parameter in patterns}
    assert translated == {parameter: ours[parameter].format(0) for parameter in patterns}


def test_the_name_of_sinks() -> None:
    translate = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT_OSS, 3)
    parameter = "layers.{}.attention.sinks"
    assert f"{translate.get_name(tensors_of(llama.NAMES)[parameter].format(2))}.weight" == tensors_of(gguf_tables.NAMES)[parameter].format(
        2
    )


def parameter_of(
    source: Source, parameter: str, stored: list[list[float]] | list[float], spec: ModelSpec, *, interleaved: bool = False
) -> list[list[float]] | list[float]:
    """What of a tensor with these values becomes the parameter, which needs no other shape than the model's."""
    table = NameTable(sources={parameter.replace(".0.", ".{}."): source}, interleaved=interleaved)
    shape = parameter_shapes(spec)[parameter]
    name = source.tensor.format(0)
    located = locate(table, [name], {parameter: shape}, spec, "model")[parameter]
    data = torch.tensor(stored)
    assert data.shape == located.shape
    result = taken(located, [LoadedTensor(format="f32", data=data)])
    assert result.data.shape == shape
    assert result.data.is_contiguous()
    values: list[list[float]] | list[float] = result.data.tolist()
    return values


def small(**mixer: Any) -> ModelSpec:
    """One layer of 4 query and 2 key-value heads of 2 elements, one input feature, and an MLP of size 3."""
    fields: dict[str, Any] = {"head_dim": 2, "rope": RopeSpec(theta=10000.0, width=2), "qkv_bias": True} | mixer
    return tiny_spec(tiny_layer(size=3, **fields), hidden_size=1)


class TestRows:
    @pytest.mark.parametrize(
        ("which", "expected"),
        [("q", [0, 1, 2, 3, 4, 5, 6, 7]), ("k", [8, 9, 10, 11]), ("v", [12, 13, 14, 15])],
        ids=lambda value: str(value),
    )
    def test_fused_qkv(self, which: str, expected: list[int]) -> None:
        source = Source(tensor="h.{}.qkv", rows=fused_qkv(which))
        assert parameter_of(source, f"layers.0.attention.{which}.bias", [float(row) for row in range(16)], small()) == expected

    @pytest.mark.parametrize(("which", "expected"), [("q", [0, 1, 2, 3, 8, 9, 10, 11]), ("k", [4, 5, 12, 13]), ("v", [6, 7, 14, 15])])
    def test_fused_qkv_by_group(self, which: str, expected: list[int]) -> None:
        source = Source(tensor="h.{}.qkv", rows=fused_qkv_by_group(which))
        stored = [[float(row)] for row in range(16)]
        assert parameter_of(source, f"layers.0.attention.{which}.weight", stored, small()) == [[row] for row in expected]

    @pytest.mark.parametrize(("which", "expected"), [("gate", [0, 1, 2]), ("up", [3, 4, 5])])
    def test_fused_gate_and_up(self, which: str, expected: list[int]) -> None:
        source = Source(tensor="h.{}.gate_up", rows=fused_gate_up(which))
        stored = [[float(row)] for row in range(6)]
        assert parameter_of(source, f"layers.0.mlp.{which}.weight", stored, small()) == [[row] for row in expected]

    @pytest.mark.parametrize(("which", "expected"), [("q", [1, 0, 3, 2, 5, 4, 7, 6]), ("k", [1, 0, 3, 2])])
    def test_swapped_halves(self, which: str, expected: list[int]) -> None:
        source = Source(tensor="h.{}", rows=swapped_halves(which))
        stored = [float(row) for row in range(len(expected))]
        assert parameter_of(source, f"layers.0.attention.{which}.bias", stored, small()) == expected

    def test_one_tensor_makes_several_parameters(self) -> None:
        table = NameTable(sources=dict(llama.parted(llama.QKV, "h.{}.qkv", fused_qkv, ["bias"])))
        shapes = {f"layers.0.attention.{which}.bias": (size,) for which, size in (("q", 8), ("k", 4), ("v", 4))}
        located = locate(table, ["h.0.qkv.bias"], shapes, small(), "model")
        assert {found.tensors for found in located.values()} == {("h.0.qkv.bias",)}
        assert {found.shape for found in located.values()} == {(16,)}

    def test_layers_of_other_shapes_take_other_rows(self) -> None:
        wide = tiny_layer(size=5)
        table = NameTable(sources={"layers.{}.mlp.up.weight": Source(tensor="h.{}", rows=fused_gate_up("up"))})
        shapes = {"layers.0.mlp.up.weight": (3, 1), "layers.1.mlp.up.weight": (5, 1)}
        located = locate(table, ["h.0", "h.1"], shapes, tiny_spec(*small().layers, wide), "model")
        assert [found.shape for found in located.values()] == [(6, 1), (10, 1)]
        assert [found.rows.tolist() for found in located.values() if found.rows is not None] == [[3, 4, 5], [5, 6, 7, 8, 9]]


class TestOtherChanges:
    def test_a_number_is_added(self) -> None:
        spec = small()
        source = Source(tensor="norm.{}", plus=1.0)
        assert parameter_of(source, "layers.0.attention_norm.weight", [0.25], spec) == [1.25]

    def test_values_are_multiplied_in_float32(self) -> None:
        located = Located(tensors=("norm",), shape=(1,), times=1 + 2.0**-9)
        loaded = LoadedTensor(format="bf16", data=torch.tensor([2.0], dtype=torch.bfloat16))
        result = taken(located, [loaded])
        assert (result.format, result.data.dtype, result.data.tolist()) == ("f32", torch.float32, [2 + 2.0**-8])

    def test_what_a_number_is_added_to_becomes_float32_first(self) -> None:
        """In bfloat16 a small number added to one would be lost."""
        located = Located(tensors=("norm",), shape=(1,), plus=1.0)
        loaded = LoadedTensor(format="bf16", data=torch.tensor([2.0**-9], dtype=torch.bfloat16))
        result = taken(located, [loaded])
        assert (result.format, result.data.dtype, result.data.tolist()) == ("f32", torch.float32, [1 + 2.0**-9])

    def test_a_matrix_is_transposed_before_its_rows_are_taken(self) -> None:
        source = Source(tensor="h.{}", rows=fused_gate_up("up"), transposed=True)
        spec = tiny_spec(tiny_layer(size=2), hidden_size=3)
        stored = [[float(10 * feature + row) for row in range(4)] for feature in range(3)]
        assert parameter_of(source, "layers.0.mlp.up.weight", stored, spec) == [[2, 12, 22], [3, 13, 23]]

    def test_tensors_are_stacked(self) -> None:
        """One for each head, and nothing is known of a number that is not there."""
        spec = small(num_heads=4, qk_norm=QKNormSpec(norm=NORM, over="each_head"))
        source = Source(tensor="h.{}.norms.{i}", stacked=lambda layer: layer.mixer.num_heads)
        table, shapes = NameTable(sources={"layers.{}.attention.q_norm.weight": source}), {"layers.0.attention.q_norm.weight": (4, 2)}
        names = [f"h.0.norms.{number}" for number in range(4)]
        (located,) = locate(table, names, shapes, spec, "model").values()
        assert (located.tensors, located.shape) == (tuple(names), (2,))
        loaded = [LoadedTensor(format="f32", data=torch.full((2,), float(number))) for number in range(4)]
        assert taken(located, loaded).data.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
        with pytest.raises(CheckpointError, match=r"missing: h\.0\.norms\.3"):
            locate(table, names[:3], shapes, spec, "model")

    def test_biases_of_experts_in_blocks_are_refused(self) -> None:
        located = Located(tensors=("blk.0.ffn_up_exps.bias",), shape=(2, 32), split=True)
        with pytest.raises(UnsupportedModelError, match=r"blk\.0\.ffn_up_exps\.bias is stored in q8_0"):
            taken(located, [LoadedTensor(format="q8_0", data=torch.zeros(2, 34, dtype=torch.uint8))])

    def test_one_tensor_is_stacked_too(self) -> None:
        located = Located(tensors=("h.0.norms.0",), shape=(2,), stacked=True)
        assert taken(located, [LoadedTensor(format="f32", data=torch.tensor([1.0, 2.0]))]).data.tolist() == [[1, 2]]

    def test_experts_are_joined_from_tensors_of_their_own(self) -> None:
        spec = tiny_spec(tiny_layer(channel=EXPERTS), hidden_size=3)
        source = Source(tensor="h.{}.experts.{i}.up", joined=experts_of)
        table, shapes = NameTable(sources={"layers.{}.mlp.experts.up.weight": source}), {"layers.0.mlp.experts.up.weight": (6, 3)}
        names = [f"h.0.experts.{number}.up" for number in range(3)]
        (located,) = locate(table, names, shapes, spec, "model").values()
        assert (located.tensors, located.shape) == (tuple(names), (2, 3))
        loaded = [LoadedTensor(format="f32", data=torch.full((2, 3), float(number))) for number in range(3)]
        assert taken(located, loaded).data[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
        with pytest.raises(CheckpointError, match=r"missing: h\.0\.experts\.1\.up"):
            locate(table, [names[0], names[2]], shapes, spec, "model")
        mixed = [LoadedTensor(format="q8_0" if number else "f32", data=torch.zeros(2, 34)) for number in range(3)]
        with pytest.raises(UnsupportedModelError, match=r"h\.0\.experts\.0\.up is stored in f32, and h\.0\.experts\.1\.up is not"):
            taken(located, mixed)

    @pytest.mark.parametrize(
        ("rows", "expected"), [(gate_up_of_experts, [2, 3, 6, 7, 10, 11]), (alternating_gate_up_of_experts, [1, 3, 5, 7, 9, 11])]
    )
    def test_experts_are_taken_from_one_tensor_for_all(self, rows: Callable[[str], RowsOf], expected: list[float]) -> None:
        """[E, 2 F, H], or [E, H, 2 F]."""
        spec = tiny_spec(tiny_layer(channel=EXPERTS), hidden_size=3)
        stored = torch.arange(12.0).view(3, 4, 1).expand(3, 4, 3)
        for transposed in (False, True):
            source = Source(tensor="h.{}.up", rows=rows("up"), split=experts_of, transposed=transposed)
            table, shapes = NameTable(sources={"layers.{}.mlp.experts.up.weight": source}), {"layers.0.mlp.experts.up.weight": (6, 3)}
            (located,) = locate(table, ["h.0.up"], shapes, spec, "model").values()
            data = stored.transpose(1, 2) if transposed else stored
            assert located.shape == tuple(data.shape)
            assert taken(located, [LoadedTensor(format="f32", data=data)]).data[:, 0].tolist() == expected

    def test_rows_stay_whole_in_a_quantized_tensor(self) -> None:
        located = Located(tensors=("q",), shape=(4, 32), rows=torch.tensor([2, 0]))
        data = torch.arange(4 * 34, dtype=torch.uint8).view(4, 34)
        result = taken(located, [LoadedTensor(format="q8_0", data=data)])
        assert result.format == "q8_0"
        assert torch.equal(result.data, data[[2, 0]])

    @pytest.mark.parametrize("change", [{"transposed": True}, {"columns": torch.tensor([1, 0])}, {"plus": 1.0}])
    def test_what_would_take_blocks_apart_is_refused(self, change: dict[str, Any]) -> None:
        loaded = LoadedTensor(format="w4_g32", data=torch.zeros(21, 21, dtype=torch.uint8))
        with pytest.raises(UnsupportedModelError, match=r"tensor q is stored in w4_g32") as raised:
            taken(Located(tensors=("q",), shape=(21, 32), **change), [loaded])
        assert raised.value.hint


class TestInterleaved:
    def test_the_order_of_halves(self) -> None:
        assert halves_of_interleaved(2, 6, 4).tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]

    @pytest.mark.parametrize(("which", "heads"), [("q", 4), ("k", 2)])
    def test_every_head_of_q_and_k(self, which: str, heads: int) -> None:
        spec = small(head_dim=4, rope=RopeSpec(theta=10000.0, width=4))
        stored = [[float(row)] for row in range(4 * heads)]
        expected = [[4 * head + element] for head in range(heads) for element in (0, 2, 1, 3)]
        assert parameter_of(Source(tensor="h.{}"), f"layers.0.attention.{which}.weight", stored, spec, interleaved=True) == expected

    @pytest.mark.parametrize("parameter", ["attention.v.bias", "attention_norm.weight", "attention.o.weight"])
    def test_nothing_else(self, parameter: str) -> None:
        located = locate(
            NameTable(sources={f"layers.{{}}.{parameter}": "h.{}"}, interleaved=True), ["h.0"], {f"layers.0.{parameter}": (1,)}, small(), ""
        )
        assert located[f"layers.0.{parameter}"] == Located(tensors=("h.0",), shape=(1,))

    def test_a_layer_that_does_not_rotate(self) -> None:
        """As llama.cpp's converter, which reorders all layers alike."""
        stored = [float(row) for row in range(16)]
        expected = [4 * head + element for head in range(4) for element in (0, 2, 1, 3)]
        source = Source(tensor="h.{}")
        assert parameter_of(source, "layers.0.attention.q.bias", stored, small(head_dim=4, rope=None), interleaved=True) == expected

    def test_the_part_that_rotates_alone(self) -> None:
        spec = small(head_dim=6, num_heads=2, num_kv_heads=1, rope=RopeSpec(theta=10000.0, width=4))
        stored = [float(row) for row in range(12)]
        expected = [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]
        assert parameter_of(Source(tensor="h.{}"), "layers.0.attention.q.bias", stored, spec, interleaved=True) == expected

    def test_rows_of_rows(self) -> None:
        """Those of k lie behind those of q, and are reordered among themselves."""
        spec = small(head_dim=4, num_heads=1, num_kv_heads=1, rope=RopeSpec(theta=10000.0, width=4))
        source = Source(tensor="h.{}", rows=fused_qkv("k"))
        stored = [float(row) for row in range(12)]
        assert parameter_of(source, "layers.0.attention.k.bias", stored, spec, interleaved=True) == [4, 6, 5, 7]

    def test_the_norm_of_a_head(self) -> None:
        spec = small(head_dim=4, rope=RopeSpec(theta=10000.0, width=4), qk_norm=QKNormSpec(norm=NORM))
        assert parameter_of(Source(tensor="h.{}"), "layers.0.attention.q_norm.weight", [0.0, 1, 2, 3], spec, interleaved=True) == [
            0,
            2,
            1,
            3,
        ]

    def test_the_norm_of_all_heads_together(self) -> None:
        spec = small(head_dim=4, rope=RopeSpec(theta=10000.0, width=4), qk_norm=QKNormSpec(norm=NORM, over="width"))
        stored = [float(row) for row in range(8)]
        expected = [0, 2, 1, 3, 4, 6, 5, 7]
        assert parameter_of(Source(tensor="h.{}"), "layers.0.attention.k_norm.weight", stored, spec, interleaved=True) == expected

    def test_the_columns_of_norms_of_each_head(self) -> None:
        spec = small(head_dim=4, rope=RopeSpec(theta=10000.0, width=4), qk_norm=QKNormSpec(norm=NORM, over="each_head"))
        stored = [[0.0, 1, 2, 3], [4.0, 5, 6, 7]]
        expected = [[0, 2, 1, 3], [4, 6, 5, 7]]
        assert parameter_of(Source(tensor="h.{}"), "layers.0.attention.k_norm.weight", stored, spec, interleaved=True) == expected


def test_a_model_with_a_head_of_its_own_needs_it() -> None:
    untied = tiny_spec(head=HeadSpec(tied=False))
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.weight"):
        locate(llama.NAMES, ["model.embed_tokens.weight"], {"embed.weight": (300, 64), "head.weight": (300, 64)}, untied, "model")


def test_layers_that_predict_further_tokens_are_left_out() -> None:
    spec, shapes = tiny_spec(tiny_layer()), {"layers.0.mlp.up.weight": (96, 64)}
    sources = {"layers.{}.mlp.up.weight": "model.layers.{}.up"}
    tensors = ["model.layers.0.up", "model.layers.1.up", "model.layers.12.eh_proj"]
    table = NameTable(sources=sources, further_layers="model.layers.{}.")
    assert list(locate(table, tensors, shapes, spec, "model")) == ["layers.0.mlp.up.weight"]
    with pytest.raises(CheckpointError, match=r"no place for: model\.layers\.0\.eh_proj"):
        locate(table, [*tensors, "model.layers.0.eh_proj"], shapes, spec, "model")
    with pytest.raises(CheckpointError, match=r"no place for: model\.layers\.1\.up"):
        locate(NameTable(sources=sources), tensors, shapes, spec, "model")

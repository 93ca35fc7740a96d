"""unfused: what it counts of a graph's operators, and that nothing is left of whole models, of all families among them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import GENERIC, NO_REFERENCE, VARIANTS, causal_families, tiny_config
from text_checkpoints import FAMILIES, Recipe, write_cross_encoder, write_embedder
from tiny_specs import tiny_layer, tiny_spec
from torch import fx
from traced_graphs import trace_model

from engine.compiler.partition import partition
from engine.errors import UnsupportedModelError
from engine.models.checkpoint import parameter_shapes
from engine.models.expected_fusions import expected_fusions
from engine.models.open import open_checkpoint
from engine.models.parts.attention import GateSpec, QKNormSpec
from engine.models.parts.latent_attention import LatentAttentionSpec
from engine.models.parts.layer_inputs import LayerInputsSpec
from engine.models.parts.mlp import MLPSpec
from engine.models.parts.moe import BranchNorms, MoESpec, RouterSpec
from engine.models.parts.norm import NormSpec
from engine.models.spec import EmbedSpec, HeadSpec, LayerNorms, LayerSpec, ModelSpec
from engine.passes import pipeline
from engine.passes.unfused import unfused


def fused(spec: ModelSpec, *disabled: str) -> fx.Graph:
    graph = trace_model(spec, kv_dtype="float32")
    passes = pipeline.pipeline(dict.fromkeys(parameter_shapes(spec), "f32"), disabled)
    pipeline.run(graph, passes, expected=() if disabled else expected_fusions(spec, one_thread=True))
    return graph


def left(spec: ModelSpec, *disabled: str) -> dict[str, int]:
    return unfused(fused(spec, *disabled), columns=spec.hidden_size)


def count(graph: fx.Graph) -> int:
    """How many operators compute anything."""
    return sum(not node.target.is_view for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload))


RMS, LAYER = NormSpec(eps=1e-5), NormSpec(kind="layer", eps=1e-5, bias=True)


def everything() -> ModelSpec:
    """A model with something for every fusion of row operators."""
    mixer, before = tiny_layer().mixer, LayerNorms(before_mixer=RMS)
    gate = GateSpec(function="softplus", by_head=True)
    normed = tiny_layer(gate=gate, clip=2.0, qk_norm=QKNormSpec(norm=LAYER, over="each_head"), value_norm=RMS).mixer
    experts = MoESpec(
        router=RouterSpec(experts=4, chosen=2, normalized=True),
        experts=MLPSpec(size=32, activation="quick_gelu", limit=7.0, up_plus=1.0),
        shared=MLPSpec(size=32),
        shared_gate=True,
    )
    branches = MoESpec(
        router=RouterSpec(experts=4, chosen=2, normalized=True, expert_scale=True, norm=RMS),
        experts=MLPSpec(size=32),
        shared=MLPSpec(size=32),
        norms=BranchNorms(before_experts=RMS, after_experts=RMS, before_shared=RMS, after_shared=RMS),
    )
    values_are_keys = tiny_layer(qk_norm=QKNormSpec(norm=RMS), value_norm=replace(RMS, weight=False), values_are_keys=True).mixer
    sandwich = LayerNorms(before_mixer=RMS, after_mixer=LAYER, before_channel=LAYER, after_channel=RMS)
    return tiny_spec(
        LayerSpec(mixer=mixer, channel=MLPSpec(size=96, activation="gelu_tanh"), norms=sandwich),
        LayerSpec(mixer=mixer, channel=MLPSpec(size=96, activation="xielu", gated=False), norms=before, multiplier=0.4),
        LayerSpec(mixer=mixer, channel=MLPSpec(size=96, activation="relu2", gated=False), norms=before, parallel=True),
        LayerSpec(mixer=normed, channel=MLPSpec(size=96), norms=sandwich, multiplier=0.4),
        LayerSpec(mixer=mixer, channel=experts, norms=LayerNorms(before_mixer=RMS, before_channel=RMS)),
        LayerSpec(
            mixer=values_are_keys, channel=branches, norms=LayerNorms(before_mixer=RMS, after_mixer=RMS, after_channel=RMS), scaled=True
        ),
        embed=EmbedSpec(multiplier=8.0, positions=128),
        head=HeadSpec(multiplier=0.5, softcap=30.0),
        layer_inputs=LayerInputsSpec(size=24, activation="gelu_tanh", norm=RMS, post_norm=RMS, embed_multiplier=2.0, multiplier=0.5),
    )


def test_nothing_is_left_of_a_model_with_every_kind_of_part() -> None:
    assert left(everything()) == {}


@pytest.mark.parametrize("name", sorted(expected_fusions(everything(), one_thread=True)))
def test_every_expected_fusion_is_a_pass_without_which_work_is_left(name: str) -> None:
    assert name in {item.name for item in pipeline.pipeline({})}
    counts = left(everything(), name)
    # what one pass leaves, a later one may take in an operator more
    assert counts or count(fused(everything(), name)) > count(fused(everything()))
    assert all(operator.startswith("aten.") for operator in counts)


def test_a_model_expects_only_what_it_has() -> None:
    llama = {"fuse_rms_norm", "fuse_residual_add", "fuse_into_attention", "fuse_activation", "fuse_gate"}
    all_targets = llama | {"fuse_layer_norm", "fuse_post_norm", "fuse_xielu", "fuse_multiplier", "fuse_soft_cap"}
    all_targets |= {"route_experts", "group_experts", "combine_experts"}
    assert expected_fusions(tiny_spec(), one_thread=True) == llama
    assert expected_fusions(everything(), one_thread=False) == all_targets
    assert expected_fusions(everything(), one_thread=True) == all_targets | {
        "fuse_head_norm",
        "fuse_head_scale",
        "fuse_clamped_gate",
        "fuse_clip",
        "fuse_scale",
        "fuse_scaled_add",
    }
    assert "fuse_into_attention" not in expected_fusions(tiny_spec(tiny_layer(rope=None)), one_thread=True)
    assert "combine_experts" not in expected_fusions(tiny_spec(everything().layers[-1]), one_thread=True)
    assert {"fuse_gate", "fuse_activation"} <= expected_fusions(tiny_spec(tiny_layer(gate=GateSpec())), one_thread=True)
    by_head = expected_fusions(tiny_spec(tiny_layer(gate=GateSpec(by_head=True))), one_thread=False)
    assert by_head == llama


_OF_LATENTS = {"aten.mul.Tensor": 4, "aten.sub.Tensor": 1, "aten.add.Tensor": 1, "aten.cat.default": 2, "aten.clone.default": 1}
"""Of each layer with latents: the rotation of queries and latents, these joined, and rows laid by head; queries that grow, besides."""


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [*causal_families(), *VARIANTS])
def test_nothing_is_left_of_any_family(name: str, tmp_path: Path) -> None:
    """Not even of one head, but for what latents leave."""
    if name in NO_REFERENCE:
        pytest.skip(NO_REFERENCE[name])
    tiny_config(name).save_pretrained(tmp_path)
    try:
        spec = open_checkpoint(str(tmp_path), weights=False).spec
    except UnsupportedModelError as error:
        pytest.skip(f"refused: {error.message}")
    left: Counter[str] = Counter()
    for layer in spec.layers:
        if isinstance(layer.mixer, LatentAttentionSpec):
            left += Counter(_OF_LATENTS) + Counter({"aten.mul.Tensor": layer.mixer.temperature is not None})
    graph = fused(spec)
    assert unfused(graph, columns=GENERIC["head_dim"]) == left
    assert partition(graph, []).calls, "and it can be cut into segments"


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_of_models_of_texts(family: str, tmp_path: Path) -> None:
    recipe = Recipe(pooling="lasttoken" if FAMILIES[family].is_causal else "mean", dense=(44, 30))
    spec = open_checkpoint(str(write_embedder(family, tmp_path / "model", recipe))).spec
    assert unfused(fused(spec), columns=min(spec.head_dims)) == {}


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_nothing_is_left_of_heads_of_one_score(family: str, tmp_path: Path) -> None:
    spec = open_checkpoint(str(write_cross_encoder(family, tmp_path / "model"))).spec
    assert unfused(fused(spec), columns=min(spec.head_dims)) == {}


def test_views_columns_and_rows_that_are_picked_are_no_work() -> None:
    sizes = {"x": {0: torch.export.Dim("T")}, "rows": None}
    graph = torch.export.export(Narrow(), (torch.randn(5, 64), torch.tensor([1, 2])), dynamic_shapes=sizes).graph
    assert unfused(graph, columns=64) == {"aten.sin.default": 1}
    assert unfused(graph, columns=32) == {"aten.sin.default": 1, "aten.cos.default": 1}


class Narrow(torch.nn.Module):
    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return x.sin().view(-1, 2, 32)[:, 0].cos().index_select(0, rows)

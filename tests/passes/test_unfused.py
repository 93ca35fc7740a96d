"""unfused: what it counts of a graph's operators, and of whole models."""

import pytest
import torch
from tiny_specs import tiny_layer, tiny_spec

from engine.compiler.trace import trace
from engine.models.checkpoint import parameter_shapes
from engine.models.expected_fusions import expected_fusions
from engine.models.parts.mlp import MLPSpec
from engine.models.parts.norm import NormSpec
from engine.models.spec import EmbedSpec, HeadSpec, LayerNorms, LayerSpec, ModelSpec
from engine.passes import pipeline
from engine.passes.unfused import unfused


def left(spec: ModelSpec, *disabled: str) -> dict[str, int]:
    graph = trace(spec, block_size=32, kv_dtype="float32").graph
    passes = pipeline.pipeline(dict.fromkeys(parameter_shapes(spec), "f32"), disabled)
    pipeline.run(graph, passes, expected=() if disabled else expected_fusions(spec))
    return unfused(graph, columns=spec.hidden_size)


RMS, LAYER = NormSpec(eps=1e-5), NormSpec(kind="layer", eps=1e-5, bias=True)


def everything() -> ModelSpec:
    """A model with something for every fusion of row operators."""
    mixer, before = tiny_layer().mixer, LayerNorms(before_mixer=RMS)
    sandwich = LayerNorms(before_mixer=RMS, after_mixer=LAYER, before_channel=LAYER, after_channel=RMS)
    return tiny_spec(
        LayerSpec(mixer=mixer, channel=MLPSpec(size=96, activation="gelu_tanh"), norms=sandwich),
        LayerSpec(mixer=mixer, channel=MLPSpec(size=96, activation="xielu", gated=False), norms=before, multiplier=0.4),
        LayerSpec(mixer=mixer, channel=MLPSpec(size=96, activation="relu2", gated=False), norms=before, parallel=True),
        embed=EmbedSpec(multiplier=8.0),
        head=HeadSpec(multiplier=0.5, softcap=30.0),
    )


def test_nothing_is_left_of_a_model_with_every_kind_of_part() -> None:
    assert left(everything()) == {}


@pytest.mark.parametrize("name", sorted(expected_fusions(everything())))
def test_every_expected_fusion_is_a_pass_without_which_work_is_left(name: str) -> None:
    assert name in {item.name for item in pipeline.pipeline({})}
    counts = left(everything(), name)
    assert counts
    assert all(operator.startswith("aten.") for operator in counts)


def test_a_model_expects_only_what_it_has() -> None:
    llama = {"fuse_rms_norm", "fuse_residual_add", "fuse_into_attention", "fuse_activation", "fuse_gate"}
    assert expected_fusions(tiny_spec()) == llama
    assert expected_fusions(everything()) == llama | {"fuse_layer_norm", "fuse_post_norm", "fuse_xielu", "fuse_multiplier", "fuse_soft_cap"}
    assert "fuse_into_attention" not in expected_fusions(tiny_spec(tiny_layer(rope=None)))
    assert {"fuse_gate", "fuse_activation"} <= expected_fusions(tiny_spec(tiny_layer(gate=True)))


def test_views_columns_and_rows_that_are_picked_are_no_work() -> None:
    sizes = {"x": {0: torch.export.Dim("T")}, "rows": None}
    graph = torch.export.export(Narrow(), (torch.randn(5, 64), torch.tensor([1, 2])), dynamic_shapes=sizes).graph
    assert unfused(graph, columns=64) == {"aten.sin.default": 1}
    assert unfused(graph, columns=32) == {"aten.sin.default": 1, "aten.cos.default": 1}


class Narrow(torch.nn.Module):
    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return x.sin().view(-1, 2, 32)[:, 0].cos().index_select(0, rows)

"""absorb_latent: what it finds in the plain module, and that it computes the same."""

from dataclasses import replace

import pytest
import torch
from torch import fx
from traced_graphs import interpret, operators, pack, trace

from engine.models.parts.attention import TemperatureSpec
from engine.models.parts.latent_attention import LatentAttention, LatentAttentionSpec
from engine.models.parts.norm import NormSpec
from engine.models.parts.rope import RopeSpec
from engine.models.step import GroupInputs, Step
from engine.passes.absorb_latent import absorb_latent
from engine.passes.assign_weight_kernels import assign_weight_kernels
from engine.passes.eliminate_no_ops import eliminate_no_ops

HIDDEN, TOKENS, BLOCKS, BLOCK_SIZE = 64, 11, 3, 16
PLAIN = LatentAttentionSpec(
    num_heads=4,
    rank=32,
    query_rank=48,
    plain_dim=32,
    value_dim=48,
    rope=RopeSpec(theta=1e4, width=16),
    scale=0.15,
    norm=NormSpec(kind="rms", eps=1e-6),
)
SPECS = {
    "queries of a latent": PLAIN,
    "queries of x": replace(PLAIN, query_rank=0),
    "biases": replace(PLAIN, bias=True, output_bias=True),
    "queries that grow": replace(PLAIN, temperature=TemperatureSpec(beta=0.1, length=4)),
}


def traced(spec: LatentAttentionSpec) -> tuple[fx.GraphModule, dict[str, torch.Tensor]]:
    """The graph of a layer's attention with random weights, and these and a step's inputs by ref."""
    module = LatentAttention(spec, HIDDEN)
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.dim() > 1 else 0.5)
    positions = torch.arange(TOKENS)
    angles = positions[:, None] * 100.0 ** -torch.linspace(0, 1, spec.rope.width // 2)
    inputs = {
        "x": torch.randn(TOKENS, HIDDEN, generator=generator),
        "positions": positions.int(),
        "cos": angles.cos(),
        "sin": angles.sin(),
        "cache": torch.zeros(BLOCKS, 1, BLOCK_SIZE, spec.head_dim),
        "cu_seqlens": torch.tensor([0, 7, TOKENS], dtype=torch.int32),
        "seq_lens": torch.tensor([7, 4], dtype=torch.int32),
        "block_table": torch.tensor([[1], [2]], dtype=torch.int32),
        "slot_mapping": torch.cat((torch.arange(16, 23), torch.arange(32, 36))).int(),
    }
    names = [name for name, _ in module.named_parameters()]

    def forward(*tensors: torch.Tensor) -> torch.Tensor:
        given = dict(zip(inputs, tensors, strict=False))
        group = GroupInputs(given["block_table"], given["slot_mapping"])
        unused = torch.zeros(1, dtype=torch.int32)
        step = Step(unused, given["positions"], given["cu_seqlens"], given["seq_lens"], unused, {"latent": group})
        arguments = (given["x"], (given["cos"], given["sin"]), step, group, (given["cache"],), None)
        weights = dict(zip(names, tensors[len(inputs) :], strict=True))
        out: torch.Tensor = torch.func.functional_call(module, weights, arguments)[0]
        return out

    values = {f"input:{name}": tensor for name, tensor in inputs.items()}
    values |= {f"weight:{name}": parameter.data for name, parameter in module.named_parameters()}
    return trace(forward, values), values


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_queries_are_brought_to_the_latents(spec: LatentAttentionSpec) -> None:
    module, values = traced(spec)
    eliminate_no_ops(module.graph)
    expected = interpret(module, values)
    assert absorb_latent(module.graph) == 1
    formats = {ref.removeprefix("weight:"): "f32" for ref, value in values.items() if ref.startswith("weight:") and value.dim() == 2}
    assign_weight_kernels(module.graph, formats=formats)
    module.graph.lint()
    found = operators(module)
    assert "expanded_attention" not in found
    assert [found.count(name) for name in ("latent_attention", "experts_dense", "equal_order")] == [1, 2, 2]
    packed = {ref: pack("f32", value) if ref.removeprefix("weight:") in formats else value for ref, value in values.items()}
    packed["input:cache"] = torch.zeros_like(values["input:cache"])
    torch.testing.assert_close(interpret(module, packed), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [replace(PLAIN, rank=40), replace(PLAIN, value_dim=40)], ids=["keys", "values"])
def test_heads_that_no_panel_holds_stay(spec: LatentAttentionSpec) -> None:
    module, _ = traced(spec)
    eliminate_no_ops(module.graph)
    assert absorb_latent(module.graph) == 0

"""compute_early: what moves before attention, and what stays."""

from collections.abc import Callable

import pytest
import torch
from traced_graphs import operators, trace

from engine.kernels import ops
from engine.kernels.attention.op import attention
from engine.kernels.attention.options import AttentionOptions
from engine.passes.compute_early import compute_early


def refs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "input:x": torch.randn(3, 16, generator=generator),
        "cache:full.0.k": torch.zeros(1, 1, 16, 16),
        "cache:full.0.v": torch.zeros(1, 1, 16, 16),
        "input:cu_seqlens": torch.tensor([0, 3], dtype=torch.int32),
        "input:seq_lens": torch.tensor([3], dtype=torch.int32),
        "input:block_table": torch.tensor([[0]], dtype=torch.int32),
        "input:slot_mapping": torch.arange(3, dtype=torch.int32),
    }


def attended(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    heads = x.view(-1, 1, 16)
    k_cache, v_cache, cu_seqlens, seq_lens, table, slots = others
    options = AttentionOptions(scale=0.25)
    return attention(heads, heads, heads, k_cache, v_cache, cu_seqlens, seq_lens, table, slots, options).view(-1, 16)


def parallel(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    wide = torch.cat((x, x), dim=-1)
    gate, up = wide[:, :16], wide[:, 16:]
    mixed = attended(x, *others)
    return mixed + torch.relu(gate) * up


def residual(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    mixed = attended(x, *others)
    return mixed + torch.relu(x)


def serial(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    mixed = x + attended(x, *others)
    return mixed + torch.relu(mixed) * 3.0


def test_what_does_not_read_attention_comes_before_it() -> None:
    ops.define()
    module = trace(parallel, refs())
    before = operators(module)
    assert before.index("attention") < before.index("aten.relu")
    assert compute_early(module.graph) == 2
    module.graph.lint()
    after = operators(module)
    assert after.index("aten.relu") < after.index("aten.mul.Tensor") < after.index("attention") < after.index("aten.add.Tensor")
    assert sorted(after) == sorted(before)


@pytest.mark.parametrize("graph", [serial, residual])
def test_what_reads_attention_or_no_views_stays(graph: Callable[..., torch.Tensor]) -> None:
    module = trace(graph, refs())
    before = operators(module)
    assert compute_early(module.graph) == 0
    assert operators(module) == before

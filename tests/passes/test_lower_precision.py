"""Activations become bfloat16, logits stay float32, whatever other rewrites are left out."""

from pathlib import Path

import pytest
import torch
import traced_graphs

from engine.compiler.partition import partition
from engine.compiler.weight_formats import choose_formats
from engine.models.open import open_checkpoint
from engine.passes import pipeline
from engine.passes.lower_precision import lower_precision

OPTIONAL = [item.name for item in pipeline.pipeline({}, layout="rows") if not item.required]


@pytest.mark.parametrize("quantize", ["none", "fp8"])
@pytest.mark.parametrize("disabled", [None, *OPTIONAL])
def test_every_linear_and_attention_reads_bfloat16(disabled: str | None, quantize: str, rows_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(rows_checkpoint))
    formats = choose_formats(checkpoint, quantize, "rows")
    graph = traced_graphs.trace_model(checkpoint.spec, kv_dtype="bfloat16")
    results = pipeline.run(graph, pipeline.pipeline(formats, [disabled] if disabled else [], "rows"))
    assert results[-1].name == "lower_precision"
    assert results[-1].matches > 0
    seen = 0
    for node in graph.nodes:
        name = str(node.target)
        if node.op == "call_function" and name.startswith("engine."):
            seen += 1
            dtypes = {arg.meta["val"].dtype for arg in node.args[:1]}
            if "linear" in name or "logits" in name:
                assert dtypes == {torch.uint8 if "fp8" in name else torch.bfloat16}, node.format_node()
            if "attention" in name:
                assert {arg.meta["val"].dtype for arg in node.args[:3]} == {torch.bfloat16}
            if "logits" in name:
                assert node.meta["val"].dtype == torch.float32
            elif "quantize" not in name:
                assert node.meta["val"].dtype == torch.bfloat16
    assert seen > 10
    assert partition(graph, [], cuts_are_segments=True).calls


def test_attention_over_latents_reads_bfloat16() -> None:
    """Queries, their part with positions and latents are each what Inductor may have computed; the scale of products is a number."""
    heads, tokens, rank, rope = 4, 3, 32, 16
    refs = {
        "q": torch.zeros(heads, tokens, rank),
        "q_rope": torch.zeros(tokens, heads, rope),
        "latents": torch.zeros(tokens, rank + rope),
        "cache": torch.zeros(2, 1, 16, rank + rope, dtype=torch.bfloat16),
        **{name: torch.zeros(2, dtype=torch.int32) for name in ("cu_seqlens", "seq_lens", "block_table", "slot_mapping")},
    }
    module = traced_graphs.trace(lambda *tensors: torch.ops.engine.latent_attention(*tensors, 0.1), refs)
    assert lower_precision(module.graph) == 1
    (node,) = module.graph.find_nodes(op="call_function", target=torch.ops.engine.latent_attention.default)
    assert [arg.meta["val"].dtype for arg in (*node.args[:4], node)] == [torch.bfloat16] * 5
    assert traced_graphs.operators(module) == ["aten.to.dtype"] * 3 + ["latent_attention"]


@pytest.fixture(scope="module")
def rows_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from random_checkpoints import write_random_checkpoint

    directory = tmp_path_factory.mktemp("rows") / "model"
    return write_random_checkpoint("qwen3", directory, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_hidden_layers=2)

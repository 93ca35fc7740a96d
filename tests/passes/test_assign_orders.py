"""Matrices in act-order: activations are gathered once for all linears that share an order, and only those are merged."""

from pathlib import Path

import pytest
import torch
from quantized_checkpoints import SHAPE, gptq, write_quantized
from random_checkpoints import write_random_checkpoint

from engine.compiler.caches import manifest_groups
from engine.compiler.interpret import GraphInterpreter, reference_operators, run_prompt
from engine.compiler.trace import trace
from engine.compiler.weight_formats import choose_formats
from engine.compiler.weights_plan import plan_weights
from engine.models.open import open_checkpoint
from engine.passes import pipeline

LINEAR = "engine.linear_w4_g128.default"
SELECT = torch.ops.aten.index_select.default


# Of a layer: linears after merging, and gathers, by who shares the order. o reads other activations than q, k and v.
@pytest.mark.parametrize(("act_order", "linears", "gathers"), [("", 4, 0), ("shared", 4, 4), ("own", 7, 7)])
def test_linears_that_share_an_order_are_merged(act_order: str, linears: int, gathers: int, tmp_path: Path) -> None:
    plain = write_random_checkpoint("llama", tmp_path / "plain", **SHAPE, num_hidden_layers=2)
    write_quantized(plain, tmp_path / "model", gptq(act_order=act_order))
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    module = trace(checkpoint.spec, block_size=32, kv_dtype="float32")
    pipeline.run(module.graph, pipeline.pipeline(choose_formats(checkpoint, "none")))
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    of_columns = [node for node in calls if node.target is SELECT and node.args[1] == 1]
    assert len([node for node in calls if str(node.target) == LINEAR]) == 2 * linears
    assert len(of_columns) == 2 * gathers
    # Behind the last attention only the rows that are wanted: o's activations are selected before they are gathered.
    assert all(user.target is not SELECT for node in of_columns for user in node.users)

    weights = plan_weights(module.graph, {name: info.format for name, info in checkpoint.parameters.items()})
    orders = [weight for weight in weights if weight.name.endswith(".order")]
    assert len({weight.name for weight in orders}) == len(orders) == {"": 0, "shared": 6, "own": 14}[act_order]
    assert all((weight.dtype, weight.format, weight.recipe) == ("int32", "order", ()) for weight in orders)
    groups = manifest_groups(checkpoint.spec, block_size=32, kv_dtype="float32")
    interpreter = GraphInterpreter(module, weights, checkpoint, reference_operators())
    assert run_prompt(interpreter, [5, 9, 3], groups).isfinite().all()

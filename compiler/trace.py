"""Stage 2: the plain model to one graph of ATen operators, without a weight in memory.

The model lives under FakeTensorMode, so tracing a 70B model costs what its graph costs.
torch.compile captures it whole (a graph break is an error), and make_fx lowers the captured
graph to ATen with linears and embeddings kept as such.
"""

from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ..artifacts.manifest import kv_row_elements
from ..errors import BuildError
from ..kernels import ops
from ..models.config import ModelConfig
from ..models.decoder import Decoder

STEP_INPUTS: dict[str, tuple[str, ...]] = {
    "tokens": ("T",),
    "positions": ("T",),
    "query_start": ("S1",),
    "seq_lens": ("S",),
    "block_table": ("S", "B"),
    "slots": ("T",),
}
"""Inputs of a step, int32, with their dimensions (S1 is S + 1). Every dimension is dynamic.

The number of cache blocks is not: only attention sees the caches, and attention is not compiled here."""

_EXAMPLE_SIZES = {"T": 13, "S": 3, "S1": 4, "B": 5, "N": 7}


def trace(config: ModelConfig, *, block_size: int, kv_dtype: str) -> fx.GraphModule:
    """Trace one ragged step of `Decoder(config)`.

    Returns a graph of ATen and engine operators. Each placeholder has meta["ref"], the name of
    what it stands for (`weight:...`, `input:...`, `kv:LAYER.k`), and meta["val"], a fake tensor
    with symbolic sizes. Its one output is the logits [S, V]. Raises BuildError if the model
    does not trace as a whole.
    """
    ops.define()
    ops.register_fakes()
    torch.compiler.reset()
    captured: dict[str, Any] = {}
    fake_mode = FakeTensorMode(shape_env=ShapeEnv())
    with fake_mode, torch.device("cpu"):
        model = Decoder(config).eval().requires_grad_(False)
        inputs = [torch.zeros([_EXAMPLE_SIZES[d] for d in dims], dtype=torch.int32) for dims in STEP_INPUTS.values()]
        cache_shape = (_EXAMPLE_SIZES["N"], config.num_kv_heads, block_size, kv_row_elements(config.head_dim, kv_dtype))
        caches = [tuple(torch.zeros(cache_shape, dtype=getattr(torch, kv_dtype)) for _ in "kv") for _ in config.layers]
    refs = _references(model, inputs, caches)
    for tensor in inputs:
        for dim in range(tensor.dim()):
            torch._dynamo.mark_dynamic(tensor, dim)

    def capture(graph_module: fx.GraphModule, example_inputs: list[Any]) -> Any:
        captured["refs"] = [refs.get(id(example)) for example in example_inputs]
        captured["graph"] = graph_module
        return graph_module.forward

    try:
        with torch.no_grad():
            torch.compile(model, backend=capture, fullgraph=True)(*inputs, caches)
            return _to_aten(captured["graph"], captured["refs"])
    except torch._dynamo.exc.TorchDynamoException as error:
        raise BuildError(
            f"the model does not trace as one graph: {error}", hint="model code must be free of data-dependent Python; see docs/map.md"
        ) from error


def _references(model: Decoder, inputs: list[torch.Tensor], caches: list[Any]) -> dict[int, str]:
    refs = {id(tensor): f"weight:{name}" for name, tensor in model.named_parameters()}
    refs |= {id(tensor): f"weight:{name}" for name, tensor in model.named_buffers()}
    refs |= {id(tensor): f"input:{name}" for name, tensor in zip(STEP_INPUTS, inputs, strict=True)}
    for layer, (k_cache, v_cache) in enumerate(caches):
        refs |= {id(k_cache): f"kv:{layer}.k", id(v_cache): f"kv:{layer}.v"}
    return refs


def _to_aten(captured: fx.GraphModule, refs: list[str | None]) -> fx.GraphModule:
    placeholders = captured.graph.find_nodes(op="placeholder")
    examples = [node.meta["example_value"] for node in placeholders]
    fake_mode = next(value.fake_mode for value in examples if isinstance(value, FakeTensor))
    with fake_mode:
        lowered = make_fx(captured, tracing_mode="real", pre_dispatch=True, _allow_non_fake_inputs=True)(*examples)
    for node, ref in zip(lowered.graph.find_nodes(op="placeholder"), refs, strict=True):
        if ref is not None:
            node.meta["ref"] = ref
        elif isinstance(node.meta["val"], torch.Tensor):
            raise BuildError(f"the trace has an input that is neither a weight, a step input nor a cache: {node.name}")
        elif not node.users:
            lowered.graph.erase_node(node)  # a size that Dynamo lifted and nothing reads
    (output,) = lowered.graph.find_nodes(op="output")
    (logits,) = output.args[0] if isinstance(output.args[0], (tuple, list)) else (output.args[0],)
    output.args = (logits,)
    lowered.recompile()
    return lowered

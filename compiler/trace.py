"""Stage 2: the plain model to one graph of ATen operators, without a weight in memory.

The model lives under FakeTensorMode, so tracing a 70B model costs what its graph costs.
torch.compile captures it whole (a graph break is an error), and make_fx lowers the captured
graph to ATen with linears and embeddings kept as such.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ..artifacts import CacheGroup, InputInfo
from ..artifacts.step_inputs import step_inputs
from ..errors import BuildError
from ..kernels import ops
from ..models.decoder import Decoder
from ..models.parts.attention import KVCache
from ..models.spec import ModelSpec
from ..models.step import Step
from .caches import manifest_groups

_EXAMPLE_SIZES = {"T": 13, "S": 3, "S1": 4, "R": 6}
_EXAMPLE_BLOCKS = 7
"""Blocks of the caches: no dynamic size, for only attention sees the caches, and attention is not compiled here."""
_EXAMPLE_WIDTH = 17
"""Blocks of a sequence in the first group; every other group has one more than the one before it. All sizes differ."""


def trace(spec: ModelSpec, *, block_size: int, kv_dtype: str) -> fx.GraphModule:
    """Trace one ragged step of `Decoder(spec)`.

    Returns a graph of ATen and engine operators. Each placeholder has meta["ref"], the name of
    what it stands for (`weight:...`, `input:...`, `cache:GROUP.LAYER.k`), and meta["val"], a fake tensor
    with symbolic sizes. Its one output is the logits [R, V], or what pooling gives. Raises BuildError if the model
    does not trace as a whole.
    """
    ops.define()
    ops.register_fakes()
    torch.compiler.reset()
    captured: dict[str, Any] = {}
    groups = manifest_groups(spec, block_size=block_size, kv_dtype=kv_dtype)
    infos = step_inputs((group.name for group in groups), token_types=spec.embed.types > 1)
    widths = {f"B.{group.name}": _EXAMPLE_WIDTH + index for index, group in enumerate(groups)}
    fake_mode = FakeTensorMode(shape_env=ShapeEnv())
    with fake_mode, torch.device("cpu"):
        model = Decoder(spec).eval().requires_grad_(False)
        inputs = {info.name: _example(info, _EXAMPLE_SIZES | widths) for info in infos}
        caches = {tensor: _example_cache(group) for group in groups for tensor in group.tensors}
    for tensor in inputs.values():
        for dim in range(tensor.dim()):
            torch._dynamo.mark_dynamic(tensor, dim)
    refs = _references(model, inputs, caches)

    def capture(graph_module: fx.GraphModule, example_inputs: list[Any]) -> Any:
        captured["refs"] = [refs.get(id(example)) for example in example_inputs]
        captured["graph"] = graph_module
        return graph_module.forward

    try:
        with torch.no_grad():
            torch.compile(model, backend=capture, fullgraph=True)(Step.of(inputs), _by_layer(spec, groups, caches))
            return _to_aten(captured["graph"], captured["refs"])
    except torch._dynamo.exc.TorchDynamoException as error:
        raise BuildError(
            f"the model does not trace as one graph: {error}", hint="model code must be free of data-dependent Python; see docs/map.md"
        ) from error


def _example(info: InputInfo, sizes: Mapping[str, int]) -> torch.Tensor:
    return torch.zeros([sizes[dim] for dim in info.dims], dtype=getattr(torch, info.dtype))


def _example_cache(group: CacheGroup) -> torch.Tensor:
    shape = (_EXAMPLE_BLOCKS, group.num_kv_heads, group.block_size, group.row_elements)
    return torch.zeros(shape, dtype=getattr(torch, group.dtype))


def _by_layer(spec: ModelSpec, groups: Sequence[CacheGroup], caches: Mapping[str, torch.Tensor]) -> list[KVCache | None]:
    """The cache of every layer, in the order of the layers; that of its source for one that reads another's; None without any."""
    own: dict[int, KVCache] = {}
    for group in groups:
        tensors = [caches[name] for name in group.tensors]
        each = len(tensors) // len(group.layers)
        own |= {layer: tuple(tensors[index * each : (index + 1) * each]) for index, layer in enumerate(group.layers)}
    return [own.get(index if layer.mixer.source is None else layer.mixer.source) for index, layer in enumerate(spec.layers)]


def _references(model: Decoder, inputs: Mapping[str, torch.Tensor], caches: Mapping[str, torch.Tensor]) -> dict[int, str]:
    refs = {id(tensor): f"weight:{name}" for name, tensor in model.named_parameters()}
    refs |= {id(tensor): f"weight:{name}" for name, tensor in model.named_buffers()}
    refs |= {id(tensor): f"input:{name}" for name, tensor in inputs.items()}
    return refs | {id(tensor): name for name, tensor in caches.items()}


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

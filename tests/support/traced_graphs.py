"""Graphs for the tests of passes: traced like a model's, run with the operators' references."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from weight_blocks import w8a8_rows

from engine.compiler.interpret import reference_operators
from engine.compiler.nvidia.references import reference_operators as nvidia_reference_operators
from engine.compiler.trace import trace as trace_step
from engine.kernels import ops
from engine.kernels.linear import formats
from engine.kernels.linear.packed import DENSE_DTYPES, Layout
from engine.models.spec import ModelSpec
from engine.passes.rewrite import joined_values


def trace(function: Callable[..., Any], refs: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    """The ATen graph of `function` on fake tensors like `refs`, its placeholders named."""
    ops.register_fakes()
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(tensor) for tensor in refs.values()]
    with mode:
        module = make_fx(function, pre_dispatch=True, _allow_non_fake_inputs=True)(*fakes)
    for node, ref in zip(module.graph.find_nodes(op="placeholder"), refs, strict=True):
        node.meta["ref"] = ref
    return module


def trace_model(spec: ModelSpec, *, kv_dtype: str) -> fx.Graph:
    """The graph of a model's step, which is the caller's: tracing takes seconds, and is done once."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(_traced_model(spec, kv_dtype), {}))
    return graph


@functools.cache
def _traced_model(spec: ModelSpec, kv_dtype: str) -> fx.Graph:
    graph: fx.Graph = trace_step(spec, block_size=32, kv_dtype=kv_dtype).graph
    return graph


def operators(module: fx.GraphModule) -> list[str]:
    """Names of the operators called, in order, ours without their namespace."""
    calls = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    return [name.removeprefix("engine.").removesuffix(".default") for name in calls]


def pack(format: str, weight: torch.Tensor, layout: Layout = "panels") -> torch.Tensor:
    """A matrix as the weights of an artifact hold it: of rows, one of numbers."""
    if layout == "rows":
        return weight.to(DENSE_DTYPES[format])
    if format in DENSE_DTYPES:
        return formats.pack_dense(weight.to(DENSE_DTYPES[format]))
    return formats.pack_blocks(format, w8a8_rows(weight) if format == "w8a8" else formats.quantize(format, weight))


def interpret(module: fx.GraphModule, values: Mapping[str, torch.Tensor], layout: Layout = "panels") -> torch.Tensor:
    """Run a rewritten graph. values: by ref, matrices packed; what was merged is found by its parts."""
    references = reference_operators() if layout == "panels" else nvidia_reference_operators()

    class Interpreter(fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            return references.get(str(target), target)(*args, **kwargs)

    arguments = []
    for node in module.graph.find_nodes(op="placeholder"):
        parts = [f"weight:{part}" for part in node.meta["parts"]] if "parts" in node.meta else [node.meta["ref"]]
        arguments.append(joined_values([values[part] for part in parts], node.meta["join"]) if len(parts) > 1 else values[parts[0]])
    result: torch.Tensor = Interpreter(module).run(*arguments)
    return result

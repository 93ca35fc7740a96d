"""Runs a fused graph with the reference of every operator: what its compiled code must compute.

Slow and exact. It stands in for the target when the build machine cannot run the target's
code: the golden probe then comes from here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ..artifacts import CacheGroup
from ..artifacts.step_arrays import step_arrays, whole_prompts
from ..kernels import mean_pool
from ..kernels.attention.latent import expanded_attention, latent_attention
from ..kernels.attention.reference import attention_operator, bidirectional_attention_operator
from ..kernels.formats import FLOAT_KERNELS, PANEL_KERNELS
from ..kernels.linear import reference
from ..kernels.linear.activations import QUANTIZERS
from ..kernels.moe import reference as moe
from ..kernels.row_operators import TWINS, twin
from ..kernels.row_references import ROW_REFERENCES, quantized_twin
from ..models.checkpoint import Checkpoint
from .quantizer import PLAIN, Quantizing
from .recipes import make
from .weights_plan import PackedWeight


def reference_operators() -> dict[str, Callable[..., torch.Tensor]]:
    """The reference of every operator of CPU targets, by its name in a graph."""
    operators: dict[str, Callable[..., torch.Tensor]] = {
        "engine.attention.default": attention_operator,
        "engine.bidirectional_attention.default": bidirectional_attention_operator,
        "engine.latent_attention.default": latent_attention,
        "engine.expanded_attention.default": expanded_attention,
        "engine.mean_pool.default": mean_pool.reference,
        "engine.linear_mixed.default": reference.linear_mixed,
        "engine.route.default": moe.route,
        "engine.route_table.default": moe.route_table,
        "engine.sort_routes.default": moe.sort_routes,
        "engine.equal_order.default": moe.equal_order,
        "engine.gather_rows.default": moe.gather_rows,
        "engine.weigh_rows.default": moe.weigh_rows,
        "engine.experts_mixed.default": moe.experts_mixed,
        "engine.combine_experts.default": moe.combine_experts,
    }
    operators |= {f"engine.experts_{kernel}.default": _with_format(moe.experts, kernel) for kernel in FLOAT_KERNELS}
    operators |= {f"engine.{name}.default": operator for name, operator in ROW_REFERENCES.items()}
    for quantizer, quantize in QUANTIZERS.items():
        operators |= {f"engine.{quantizer}.default": quantize}
        operators |= {f"engine.{twin(row.name, quantizer)}.default": quantized_twin(row.name, quantize) for row in TWINS}
    for kernel in PANEL_KERNELS:
        operators[f"engine.linear_{kernel}.default"] = _with_format(reference.linear, kernel)
        operators[f"engine.embedding_{kernel}.default"] = _with_format(reference.embedding, kernel)
    return operators


class GraphInterpreter(fx.Interpreter):
    """Interprets a traced and fused step. Weights are packed when first used and freed after their last use.

    operators: the reference of every operator of ours, by its name in the graph. quantizing: as of `make`.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        weights: list[PackedWeight],
        checkpoint: Checkpoint,
        operators: Mapping[str, Callable[..., torch.Tensor]],
        quantizing: Quantizing = PLAIN,
    ) -> None:
        super().__init__(module)
        self._weights = {f"weight:{weight.name}": weight for weight in weights}
        self._checkpoint = checkpoint
        self._operators = operators
        self._quantizing = quantizing

    @torch.no_grad()
    def step(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run one step. inputs: every `input:` and `cache:` tensor by reference. Returns the logits [R, V] float32."""
        placeholders = self.graph.find_nodes(op="placeholder")
        result = super().run(*(inputs.get(node.meta["ref"], node.meta["ref"]) for node in placeholders))
        logits: torch.Tensor = result[0] if isinstance(result, tuple) else result  # before what routers chose
        return logits

    def map_nodes_to_values(self, args: Any, n: fx.Node) -> Any:
        for source in n.all_input_nodes:
            if isinstance(self.env[source], str):  # a weight that is still only a name
                self.env[source] = make(self._weights[self.env[source]], self._checkpoint, self._quantizing)
        return super().map_nodes_to_values(args, n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._operators.get(str(target), target)(*args, **kwargs)


def _with_format(operation: Callable[..., torch.Tensor], kernel: str) -> Callable[..., torch.Tensor]:
    return lambda *args: operation(kernel, *args)


def run_prompt(
    interpreter: GraphInterpreter, tokens: list[int], groups: Sequence[CacheGroup], *, wanted: Sequence[int] | None = None
) -> torch.Tensor:
    """Logits [V] after the last of `tokens`, or their vector, computed in one prefill over empty caches. wanted: as in `Piece`."""
    sizes = {group.name: group.block_size for group in groups}
    pieces = whole_prompts([tokens], sizes, wanted=wanted)
    inputs = {f"input:{name}": torch.from_numpy(array) for name, array in step_arrays(pieces, sizes).items()}
    for group in groups:
        shape = (len(pieces[0].blocks[group.name]), group.num_kv_heads, group.block_size, group.row_elements)
        inputs |= {tensor: torch.zeros(shape, dtype=getattr(torch, group.dtype)) for tensor in group.tensors}
    return interpreter.step(inputs)[0]

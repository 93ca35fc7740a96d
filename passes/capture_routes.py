"""The choices of every router become results of the graph, behind its own.

    output(logits)    ->    output((logits, route(...), route(...), ...))      one [T, 2, k] for each layer of experts, in their order

Why: whoever trains a model by reinforcement learning replays these choices, and they say how evenly experts are used.

When not: unless a build asks for it (`--capture-routes`). Numerics do not change: what is computed anyway is kept until the step
ends. Every token's choice is a result then, so `select_rows_early` leaves the last layer's router all rows; its experts still compute
those alone that are sampled.
"""

import torch
from torch import fx

from ..errors import BuildError


def capture_routes(graph: fx.Graph, *, layers: int) -> int:
    """Add what each router chose to the outputs of `graph`; returns how many there are.

    layers: how many the model has. Raises BuildError if those that the graph shows are not all of them.
    """
    routes = graph.find_nodes(op="call_function", target=torch.ops.engine.route.default)
    if len(routes) != layers:
        raise BuildError(
            f"of {layers} layers with experts, {len(routes)} have a router whose choices can be captured",
            hint="leave --disable-pass route_experts out; or write the graphs with --debug-dump DIR and compare",
        )
    (output,) = graph.find_nodes(op="output")
    output.args = ((output.args[0], *routes),)
    return len(routes)

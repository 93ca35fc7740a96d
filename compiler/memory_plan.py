"""How much memory a step can need, read off the graph, so that serving needs no profiling run."""

import math
from dataclasses import dataclass

import torch
from torch import fx

from .partition import CUT_OPERATORS


@dataclass(frozen=True, kw_only=True)
class ActivationBytes:
    """A step with T tokens and S sequences holds at most per_token * T + per_sequence * S bytes."""

    per_token: int
    per_sequence: int


def plan_activations(graph: fx.Graph) -> ActivationBytes:
    """Upper bound on live activations: for each piece between two cuts, everything computed in it
    plus everything that lives across it. Inductor fuses and reuses, so a step stays below this."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    piece_of = _pieces(graph)
    tokens_dim = _first_size(next(node for node in order if node.meta.get("ref") == "input:tokens"))
    peak = {"token": 0, "sequence": 0}
    for piece in sorted(set(piece_of.values())):
        for unit in peak:
            live = sum(
                _row_bytes(node)
                for node, made in piece_of.items()
                if _unit(node, tokens_dim) == unit
                and made <= piece
                and max((piece_of.get(user, made) for user in node.users), default=made) >= piece
            )
            peak[unit] = max(peak[unit], live)
    return ActivationBytes(per_token=peak["token"], per_sequence=peak["sequence"])


def _pieces(graph: fx.Graph) -> dict[fx.Node, int]:
    pieces: dict[fx.Node, int] = {}
    current = 0
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor):
            pieces[node] = current
            current += str(node.target) in CUT_OPERATORS
    return pieces


def _first_size(node: fx.Node) -> str:
    shape = node.meta["val"].shape
    return str(shape[0]) if len(shape) else ""


def _unit(node: fx.Node, tokens_dim: str) -> str:
    return "token" if _first_size(node) == tokens_dim else "sequence"


def _row_bytes(node: fx.Node) -> int:
    value = node.meta["val"]
    row = math.prod(int(size) for size in value.shape[1:] if isinstance(size, int))
    return row * int(value.dtype.itemsize)

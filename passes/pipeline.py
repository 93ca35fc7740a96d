"""The pipeline: every graph rewrite, top to bottom, in the order in which it runs.

A pass is a function (graph) -> number of rewrites made. It changes the graph in place and
leaves it valid. `run` reports each one; a required pass that matched nothing fails the build.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import fx

from ..errors import BuildError
from .assign_weight_kernels import assign_weight_kernels
from .eliminate_no_ops import eliminate_no_ops


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One rewrite with its name. `required`: a model in which it matches nothing is an error."""

    name: str
    rewrite: Callable[[fx.Graph], int]
    required: bool = False


@dataclass(frozen=True, kw_only=True)
class PassResult:
    name: str
    matches: int
    nodes_before: int
    nodes_after: int


def pipeline(formats: Mapping[str, str]) -> list[Pass]:
    """The passes for CPU targets. formats: storage format of every weight, by name."""
    return [
        Pass(name="eliminate_no_ops", rewrite=eliminate_no_ops),
        Pass(name="assign_weight_kernels", rewrite=partial(assign_weight_kernels, formats=formats), required=True),
    ]


def run(graph: fx.Graph, passes: list[Pass], after_each: Callable[[PassResult], None] = lambda result: None) -> list[PassResult]:
    """Run the passes in order on `graph`, in place. Raises BuildError for a required pass without a match."""
    results = []
    for item in passes:
        before = len(graph.nodes)
        matches = item.rewrite(graph)
        graph.lint()
        if item.required and matches == 0:
            raise BuildError(
                f"the pass {item.name} matched nothing in this model", hint="write the graphs with --debug-dump DIR and compare"
            )
        results.append(PassResult(name=item.name, matches=matches, nodes_before=before, nodes_after=len(graph.nodes)))
        after_each(results[-1])
    return results

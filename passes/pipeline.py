"""The pipeline: every graph rewrite, top to bottom, in the order in which it runs.

A pass is a function (graph) -> number of rewrites made. It changes the graph in place and
leaves it valid. `run` reports each one; a required pass that matched nothing fails the build.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from torch import fx

from ..errors import BuildError, UsageError
from ..kernels.linear.packed import Layout
from .absorb_latent import absorb_latent
from .assign_weight_kernels import assign_weight_kernels
from .capture_routes import capture_routes
from .combine_experts import combine_experts
from .compute_early import compute_early
from .eliminate_no_ops import eliminate_no_ops
from .fuse_activation import fuse_activation
from .fuse_clamped_gate import fuse_clamped_gate
from .fuse_clip import fuse_clip
from .fuse_gate import fuse_gate
from .fuse_head_norm import fuse_head_norm
from .fuse_head_scale import fuse_head_scale
from .fuse_into_attention import fuse_into_attention
from .fuse_layer_norm import fuse_layer_norm
from .fuse_multiplier import fuse_multiplier
from .fuse_post_norm import fuse_post_norm
from .fuse_quantize import fuse_quantize
from .fuse_residual_add import fuse_residual_add
from .fuse_rms_norm import fuse_rms_norm
from .fuse_scale import fuse_scale
from .fuse_scaled_add import fuse_scaled_add
from .fuse_soft_cap import fuse_soft_cap
from .fuse_xielu import fuse_xielu
from .group_experts import group_experts
from .join_shared_expert import join_shared_expert
from .lower_precision import lower_precision
from .merge_sibling_linears import merge_sibling_linears
from .route_experts import route_experts
from .select_rows_early import select_rows_early


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


def pipeline(
    formats: Mapping[str, str], disabled: Collection[str] = (), layout: Layout = "panels", *, captured_layers: int = 0
) -> list[Pass]:
    """The passes for a target whose weights have that layout, without those named in `disabled`.

    formats: storage format of every weight, by name. captured_layers: how many layers have a router whose choices are to be results, if
    they are. Raises UsageError for an unknown name, and
    for a pass that no artifact can do without.
    """
    cpu = layout == "panels"
    passes = [
        Pass(name="eliminate_no_ops", rewrite=eliminate_no_ops),
        Pass(name="absorb_latent", rewrite=absorb_latent),
        Pass(name="route_experts", rewrite=route_experts),
        *([Pass(name="capture_routes", rewrite=partial(capture_routes, layers=captured_layers), required=True)] if captured_layers else []),
        Pass(name="group_experts", rewrite=group_experts),
        Pass(name="combine_experts", rewrite=combine_experts),
        Pass(name="assign_weight_kernels", rewrite=partial(assign_weight_kernels, formats=formats, layout=layout), required=True),
        Pass(name="fuse_multiplier", rewrite=fuse_multiplier),
        Pass(name="join_shared_expert", rewrite=join_shared_expert),
        Pass(name="merge_sibling_linears", rewrite=merge_sibling_linears),
        Pass(name="fuse_residual_add", rewrite=fuse_residual_add),
        Pass(name="fuse_into_attention", rewrite=fuse_into_attention),
        Pass(name="fuse_rms_norm", rewrite=fuse_rms_norm),
        Pass(name="fuse_layer_norm", rewrite=fuse_layer_norm),
        *([Pass(name="fuse_head_norm", rewrite=fuse_head_norm), Pass(name="fuse_head_scale", rewrite=fuse_head_scale)] if cpu else []),
        Pass(name="fuse_post_norm", rewrite=fuse_post_norm),
        Pass(name="fuse_activation", rewrite=fuse_activation),
        Pass(name="fuse_xielu", rewrite=fuse_xielu),
        Pass(name="fuse_gate", rewrite=fuse_gate),
        Pass(name="fuse_soft_cap", rewrite=fuse_soft_cap),
        *(
            [
                Pass(name="fuse_clamped_gate", rewrite=fuse_clamped_gate),
                Pass(name="fuse_clip", rewrite=fuse_clip),
                Pass(name="fuse_scale", rewrite=fuse_scale),
                Pass(name="fuse_scaled_add", rewrite=fuse_scaled_add),
            ]
            if cpu
            else []
        ),
        Pass(name="fuse_quantize", rewrite=fuse_quantize),
        Pass(name="select_rows_early", rewrite=select_rows_early),
        Pass(name="compute_early", rewrite=compute_early),
        *([] if cpu else [Pass(name="lower_precision", rewrite=lower_precision, required=True)]),
    ]
    optional = [item.name for item in passes if not item.required]
    for name in disabled:
        if name not in optional:
            raise UsageError(f"there is no pass {name!r} to disable", hint=f"those that can be: {', '.join(optional)}")
    return [item for item in passes if item.name not in disabled]


def run(
    graph: fx.Graph,
    passes: list[Pass],
    after_each: Callable[[PassResult], None] = lambda result: None,
    *,
    expected: Collection[str] = (),
) -> list[PassResult]:
    """Run the passes in order on `graph`, in place.

    expected: names of passes that must match in this model. Raises BuildError for one that does not, or a required one.
    """
    for name in set(expected) - {item.name for item in passes}:
        raise BuildError(f"the model expects a match of {name!r}, and there is no pass {name!r}", hint="the two lists must agree")
    results = []
    for item in passes:
        before = len(graph.nodes)
        matches = item.rewrite(graph)
        graph.lint()
        if matches == 0 and (item.required or item.name in expected):
            raise BuildError(
                f"the pass {item.name} matched nothing in this model", hint="write the graphs with --debug-dump DIR and compare"
            )
        results.append(PassResult(name=item.name, matches=matches, nodes_before=before, nodes_after=len(graph.nodes)))
        after_each(results[-1])
    return results

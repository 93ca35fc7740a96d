"""Mixtures of experts in checkpoints: what their settings say, and where routers and experts lie."""

from collections.abc import Callable, Sequence
from typing import Any

from ...errors import CheckpointError, UnsupportedModelError
from ..names import Entry, RowsOf, Source, alternating_gate_up_of_experts, experts_of, gate_up_of_experts
from ..parts.mlp import MLPSpec
from ..parts.moe import ExpertGroupsSpec, MoESpec, RouterSpec
from ..settings import Settings
from ..spec import Channel
from .hf import DAMAGED, mlp, num_layers

PARTS = ("gate", "up", "down")


def router(settings: Settings, experts: str = "num_experts", chosen: str = "num_experts_per_tok", **fields: Any) -> RouterSpec:
    """experts, chosen: names of the settings that count them. fields: of RouterSpec."""
    settings.ignore("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")
    return checked_router(settings, settings.integer(experts), settings.integer(chosen), **fields)


def checked_router(settings: Settings, experts: int, chosen: int, **fields: Any) -> RouterSpec:
    """Raises CheckpointError where not so many experts can be chosen."""
    if not 0 < chosen <= experts:
        raise CheckpointError(f"{settings.source}: {chosen} of {experts} experts are to be chosen for each token", hint=DAMAGED)
    groups: ExpertGroupsSpec | None = fields.get("groups")
    if groups is not None and (experts % groups.count or not 0 < groups.kept <= groups.count or experts // groups.count < groups.best):
        raise CheckpointError(
            f"{settings.source}: {experts} experts in {groups.count} groups of which {groups.kept} are kept", hint=DAMAGED
        )
    if groups is not None and chosen > experts // groups.count * groups.kept:
        raise CheckpointError(
            f"{settings.source}: {chosen} experts are to be chosen in {groups.kept} of {groups.count} groups", hint=DAMAGED
        )
    return RouterSpec(experts=experts, chosen=chosen, **fields)


def check_sigmoid(settings: Settings) -> None:
    """Raises UnsupportedModelError where `scoring_func` is another function."""
    if (scored := settings.text("scoring_func", "sigmoid")) != "sigmoid":
        raise UnsupportedModelError(f"{settings.source}: routers that score by {scored!r} are not supported here", hint="sigmoid is")


def sigmoid_router(settings: Settings, experts: str = "n_routed_experts", eps: float = 1e-20) -> RouterSpec:
    """That of DeepSeek-V3 and of those that follow it. Raises UnsupportedModelError for another function of the logits."""
    check_sigmoid(settings)
    count = settings.integer("n_group", 1)
    groups = ExpertGroupsSpec(count=count, kept=settings.integer("topk_group", 1)) if count > 1 else None
    settings.ignore("topk_group", "topk_method")
    normalized = settings.flag("norm_topk_prob", False)
    return router(
        settings,
        experts,
        score="sigmoid",
        choice_bias=True,
        groups=groups,
        normalized=normalized,
        eps=eps if normalized else 0.0,
        scale=settings.number("routed_scaling_factor", 1.0),
    )


def shared_mlp(settings: Settings, count: int, size: int, **fields: Any) -> MLPSpec | None:
    """So many experts of that size as one MLP, which computes every token; None without any."""
    return mlp(settings, size=count * size, **fields) if count else None


def by_layer(settings: Settings, dense: MLPSpec, sparse: MoESpec, is_sparse: Callable[[int], bool]) -> tuple[Channel, ...]:
    """The channel of every layer: as `mlp_layer_types` says, or else is_sparse(layer)."""
    count = num_layers(settings)
    if "mlp_layer_types" not in settings:
        return tuple(sparse if is_sparse(index) else dense for index in range(count))
    types = settings.items("mlp_layer_types")
    settings.ignore("first_k_dense_replace")
    if len(types) != count:
        raise CheckpointError(f"{settings.source}: mlp_layer_types has {len(types)} entries for {count} layers", hint=DAMAGED)
    for unknown in sorted({str(each) for each in types} - {"dense", "sparse"}):
        raise UnsupportedModelError(f"{settings.source}: channels of type {unknown!r} are not supported", hint="dense and sparse are")
    return tuple(sparse if each == "sparse" else dense for each in types)


def after_the_first(settings: Settings) -> Callable[[int], bool]:
    """Whether a layer comes after the dense ones that `first_k_dense_replace` counts."""
    first = settings.integer("first_k_dense_replace", 0)
    return lambda index: index >= first


def each_expert(module: str, parts: Sequence[str] = ("gate_proj", "up_proj", "down_proj")) -> dict[str, Entry]:
    """Experts in tensors of their own. module: that which has them by number."""
    return {
        f"layers.{{}}.mlp.experts.{ours}.{kind}": Source(tensor=f"{module}.{{i}}.{theirs}.{kind}", joined=experts_of)
        for ours, theirs in zip(PARTS, parts, strict=True)
        for kind in ("weight", "bias")
    }


def all_experts(gate_up: str, down: str, rows: Callable[[str], RowsOf] = gate_up_of_experts, **fields: Any) -> dict[str, Entry]:
    """Those of a layer in one tensor, [E, 2 F, H] and [E, H, F]. fields: of Source."""
    sources: dict[str, Entry] = {
        f"layers.{{}}.mlp.experts.{part}.weight": Source(tensor=gate_up, rows=rows(part), split=experts_of, **fields)
        for part in ("gate", "up")
    }
    return sources | {"layers.{}.mlp.experts.down.weight": Source(tensor=down, split=experts_of, **fields)}


def biases_of_experts(gate_up: str, down: str) -> dict[str, Entry]:
    """[E, 2 F], gate and up in turns, and [E, H]."""
    sources: dict[str, Entry] = {
        f"layers.{{}}.mlp.experts.{part}.bias": Source(tensor=gate_up, rows=alternating_gate_up_of_experts(part), split=experts_of)
        for part in ("gate", "up")
    }
    return sources | {"layers.{}.mlp.experts.down.bias": Source(tensor=down, split=experts_of)}


def shared(module: str, parts: Sequence[str] = ("gate_proj", "up_proj", "down_proj")) -> dict[str, Entry]:
    """The MLP beside the experts."""
    return {f"layers.{{}}.mlp.shared.{ours}.weight": f"{module}.{theirs}.weight" for ours, theirs in zip(PARTS, parts, strict=True)}

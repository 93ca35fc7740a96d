"""Which routers a model has, whose choices `--capture-routes` makes results of a step."""

from ..artifacts import RoutesInfo
from ..errors import BuildError
from ..models.parts.moe import MoESpec
from ..models.spec import ModelSpec


def routes_info(spec: ModelSpec) -> RoutesInfo:
    """What a manifest says of them. Raises BuildError for a model whose routes cannot be told."""
    routers = {index: layer.channel.router for index, layer in enumerate(spec.layers) if isinstance(layer.channel, MoESpec)}
    if not routers or spec.pooling is not None:
        raise BuildError(
            f"--capture-routes is for models that generate text by experts, and this {spec.architecture} is none", hint="leave it out"
        )
    sizes = {(router.chosen, router.experts) for router in routers.values()}
    if len(sizes) > 1:
        said = ", ".join(f"{chosen} of {experts}" for chosen, experts in sorted(sizes))
        raise BuildError(f"--capture-routes is for models whose routers are all alike, and here they choose {said}", hint="leave it out")
    ((chosen, experts),) = sizes
    return RoutesInfo(layers=list(routers), experts=experts, chosen=chosen)

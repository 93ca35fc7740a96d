"""The experts that tokens chose, as choices write them."""

from msgspec import UNSET, UnsetType

from ...artifacts import RoutesInfo
from ..text.assembler import Delta
from .answers import RoutedExperts


def routed_experts(routes: RoutesInfo | None, delta: Delta) -> RoutedExperts | UnsetType:
    """Those of a choice that ends with `delta`. routes: None if nobody asked for them."""
    return UNSET if routes is None or delta.finish_reason is None else routes.nested(delta.routes)

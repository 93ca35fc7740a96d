"""What a server needs for some requests but not to be up: imported a little later, or by the request that is sooner."""

from importlib import import_module

from .text.chat_template import ChatTemplate

_MODULES = (".http.later_endpoints", ".metrics_page", ".parsing.parsing")


def import_late(template: ChatTemplate | None) -> None:
    """For a thread of its own. Raises ArtifactError for a template that does not parse."""
    for module in _MODULES:
        import_module(module, __package__)
    if template is not None:
        _ = template.compiled

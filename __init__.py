"""Engine: compile a language model once, ahead of time; serve it in seconds, compiling nothing.

The names below are the Python interface. Each is imported when it is first used, so that
`import engine` costs nothing and a program that serves never imports the compiler.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .artifacts import load_manifest
    from .compiler.build import build
    from .compiler.options import BuildOptions
    from .server.llm import LLM, Params

__all__ = ["LLM", "BuildOptions", "Params", "__version__", "build", "load_manifest"]

_HOMES = {
    "BuildOptions": ".compiler.options",
    "LLM": ".server.llm",
    "Params": ".server.llm",
    "build": ".compiler.build",
    "load_manifest": ".artifacts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)

"""What `engine generate` and `engine chat` share: a model in this terminal, and text as it comes."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from ..options.runtime import RuntimeOptions
from ..server.llm import LLM
from ..server.options import GenerationConfig
from .prompts import Message


def open_llm(artifacts: Path, limits: RuntimeOptions, generation_config: GenerationConfig) -> LLM:
    """The model, in a worker of its own; raises as `LLM` does."""
    return LLM(artifacts, generation_config=generation_config, **{each.name: getattr(limits, each.name) for each in fields(RuntimeOptions)})


def user(text: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": text}


def show(pieces: Iterable[str]) -> None:
    """Print the pieces of an answer as they come."""
    for piece in pieces:
        print(piece, end="", flush=True)
    print()

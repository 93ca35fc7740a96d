"""Tiny checkpoints of every architecture that GGUF has, as a Hugging Face directory and as a GGUF file of the same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from families import VARIANTS, write_tiny_checkpoint
from gguf_architectures import ARCHITECTURES
from gguf_files import write_gguf

# Architectures of GGUF whose maths another family has.
_SOURCES = {"minicpm": "granite", "internlm2": "llama"}
# Variants with tensors that their architecture of GGUF has no names for, or with numbers that converters do not write.
_UNSAID = {"falcon-serial", "gemma4-values-are-keys", "llama4-plain", "mistral4-growing", "phi-qk-norm"}


def twins() -> list[str]:
    """Names of the pairs: families of ARCHITECTURES and the variants of those."""
    variants = [name for name, (family, _) in VARIANTS.items() if family in ARCHITECTURES and name not in _UNSAID]
    return [*ARCHITECTURES, *variants]


def write_twins(
    name: str, directory: Path, *, seed: int = 0, quantization: str | Callable[[str], str] = "F32", **overrides: Any
) -> tuple[Path, Path]:
    """Writes one pair into `directory`, which is made: (the checkpoint, the GGUF file). quantization: as of `write_gguf`; overrides: of
    the family's settings."""
    family, chosen = VARIANTS.get(name, (name, {}))
    settings = ARCHITECTURES[family].settings | chosen | overrides
    checkpoint = write_tiny_checkpoint(_SOURCES.get(name, name), directory / "checkpoint", seed=seed, **settings)
    return checkpoint, write_gguf(checkpoint, directory / "model.gguf", architecture=family, quantization=quantization)

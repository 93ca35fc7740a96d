"""From what a person types to the checkpoint that it is."""

import re
from collections.abc import Collection
from pathlib import Path

from ..errors import UsageError
from .checkpoint import Checkpoint


def open_checkpoint(model: str, *, weights: bool = True, ignored: Collection[str] = ()) -> Checkpoint:
    """Opens a Hugging Face directory, a GGUF file or a hub id, and checks all of its structure.

    weights: False where none will be read; then a directory may have neither them nor a tokenizer. ignored: names of settings of which
    the user says that they change nothing.

    Raises UsageError if `model` is none of them, CheckpointError for files that are missing, damaged or
    contradictory, UnsupportedModelError for a model or a setting that this version does not implement.
    """
    # Each kind is imported only where it is used: gguf and the hub's library take long to import.
    path = Path(model).expanduser()
    if path.is_dir():
        from .hf_checkpoint import HFCheckpoint

        return HFCheckpoint(path, name=path.resolve().name, weights=weights, ignored=ignored)
    if path.is_file():
        if path.suffix in (".safetensors", ".json"):
            raise UsageError(f"{model} is one file of a checkpoint", hint=f"give its directory: {path.parent}")
        from .gguf_checkpoint import GGUFCheckpoint

        return GGUFCheckpoint(path, ignored=ignored)
    if _HUB_ID.fullmatch(model):
        from .hf_checkpoint import HFCheckpoint
        from .hub import download

        return HFCheckpoint(download(model), name=model, ignored=ignored)
    raise UsageError(
        f"{model!r} is neither a directory, nor a file, nor the name of a model on the Hugging Face hub",
        hint="a model is a directory with config.json and safetensors, a .gguf file, or an organization/name",
    )


# Two parts, so that a mistyped path of one part or of three is not looked up on the network.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

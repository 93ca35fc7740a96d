"""Loading an artifact with whatever runs it."""

from pathlib import Path

from ..artifacts import load_manifest
from ..options.runtime import RuntimeOptions
from .kinds.choose import kind_of
from .phases import OnPhase
from .step import StepExecutor


def load_executor(
    directory: Path,
    *,
    kv_memory: int | None = None,
    threads: int | None = None,
    max_num_seqs: int = 1,
    max_batch_tokens: int = 1,
    on_phase: OnPhase = lambda name, seconds: None,
) -> StepExecutor:
    """Load an artifact for the CPU or the GPU, as it was built. Arguments as in RuntimeOptions, errors as of `RuntimeKind.load`."""
    manifest = load_manifest(directory)
    options = RuntimeOptions(kv_memory=kv_memory, threads=threads, max_num_seqs=max_num_seqs, max_batch_tokens=max_batch_tokens)
    return kind_of(manifest).load(directory, manifest, options, on_phase)

"""Which executor runs an artifact. Each is imported only where it is used: they share no native code."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import load_manifest
from ..artifacts.nvidia_target import CAPABILITIES
from ..errors import UsageError
from .phases import OnPhase

if TYPE_CHECKING:
    from .cuda.executor import CudaExecutor
    from .executor import Executor


def load_executor(
    directory: Path,
    *,
    kv_memory: int | None = None,
    threads: int | None = None,
    max_num_seqs: int = 1,
    max_batch_tokens: int = 1,
    on_phase: OnPhase = lambda name, seconds: None,
) -> "Executor | CudaExecutor":
    """Load an artifact for the CPU or the GPU, as it was built. Arguments and errors: as `Executor.load` and `CudaExecutor.load`.

    Raises UsageError for `threads` where a GPU computes.
    """
    manifest = load_manifest(directory)
    if manifest.target not in CAPABILITIES:
        from .executor import Executor

        return Executor.load(
            directory,
            manifest,
            kv_memory=kv_memory,
            threads=threads,
            max_num_seqs=max_num_seqs,
            max_batch_tokens=max_batch_tokens,
            on_phase=on_phase,
        )
    if threads is not None:
        raise UsageError(f"--threads {threads} makes no sense: this artifact runs on a GPU", hint="leave it out")
    from .cuda.executor import CudaExecutor

    return CudaExecutor.load(
        directory, manifest, kv_memory=kv_memory, max_num_seqs=max_num_seqs, max_batch_tokens=max_batch_tokens, on_phase=on_phase
    )

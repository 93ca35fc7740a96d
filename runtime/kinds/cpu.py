"""Serving on a CPU."""

from pathlib import Path
from typing import TYPE_CHECKING

from ...artifacts import Manifest, check_machine
from ...options.runtime import RuntimeOptions
from ..capacity import kv_memory
from ..phases import OnPhase
from .kind import RuntimeKind

if TYPE_CHECKING:
    from ..step import StepExecutor


class CpuKind(RuntimeKind):
    """Segments and operators as native code; weights are mapped, memory is committed as it is written."""

    uses_gpu = False
    free_memory_share = kv_memory.FREE_MEMORY_SHARE
    commits_caches = False

    def check_fit(self, manifest: Manifest) -> None:
        check_machine(manifest)

    def load(self, directory: Path, manifest: Manifest, options: RuntimeOptions, on_phase: OnPhase) -> "StepExecutor":
        from ..executor import Executor

        return Executor.load(
            directory,
            manifest,
            kv_memory=options.kv_memory,
            threads=options.threads,
            max_num_seqs=options.max_num_seqs,
            max_batch_tokens=options.max_batch_tokens,
            on_phase=on_phase,
        )

    def step_bytes(self, manifest: Manifest, options: RuntimeOptions) -> int:
        return kv_memory.step_bytes(manifest, max_num_seqs=options.max_num_seqs, max_batch_tokens=options.max_batch_tokens)

    def pools(self, manifest: Manifest, free: int, options: RuntimeOptions) -> dict[str, int]:
        return kv_memory.count_blocks(
            manifest, None, max_num_seqs=options.max_num_seqs, max_batch_tokens=options.max_batch_tokens, free=free
        )

    def check_scores(self) -> None:
        pass

    def least_tokens(self, manifest: Manifest) -> int:
        return 1

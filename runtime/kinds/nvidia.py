"""Serving on an NVIDIA GPU."""

from pathlib import Path
from typing import TYPE_CHECKING

from ...artifacts import Manifest, check_machine
from ...errors import RequestError, UsageError
from ...options.runtime import RuntimeOptions
from ..cuda import block_count
from ..cuda.buckets import Buckets
from ..phases import OnPhase
from .kind import RuntimeKind

if TYPE_CHECKING:
    from ..step import StepExecutor


class NvidiaKind(RuntimeKind):
    """One CUDA graph per step, from the artifact's templates; weights and caches are copied to and lie on the GPU."""

    uses_gpu = True
    free_memory_share = block_count.FREE_MEMORY_SHARE
    commits_caches = True

    def check_fit(self, manifest: Manifest) -> None:
        check_machine(manifest)
        from ..cuda.find_device import find_device

        find_device(manifest)

    def load(self, directory: Path, manifest: Manifest, options: RuntimeOptions, on_phase: OnPhase) -> "StepExecutor":
        if options.threads is not None:
            raise UsageError(f"--threads {options.threads} makes no sense: this artifact runs on a GPU", hint="leave it out")
        from ..cuda.executor import CudaExecutor

        return CudaExecutor.load(
            directory,
            manifest,
            kv_memory=options.kv_memory,
            max_num_seqs=options.max_num_seqs,
            max_batch_tokens=options.max_batch_tokens,
            on_phase=on_phase,
        )

    def step_bytes(self, manifest: Manifest, options: RuntimeOptions) -> int:
        largest = max(options.max_batch_tokens, block_count.probe_tokens(manifest))
        wanted = Buckets(manifest.graphs).within(options.max_num_seqs, largest)
        return max(manifest.graphs[number].workspace_bytes for number in wanted)

    def pools(self, manifest: Manifest, free: int, options: RuntimeOptions) -> dict[str, int]:
        left = free - manifest.memory.weight_bytes - self.step_bytes(manifest, options)
        return block_count.count_blocks(manifest, None, left, max_batch_tokens=options.max_batch_tokens)

    def check_scores(self) -> None:
        """A graph has one row of logits per sequence, and which graph a step takes changes the last bits."""
        raise RequestError(
            "prompt_logprobs is not supported on a GPU: its graphs have logits of a prompt's last token only",
            param="prompt_logprobs",
            code="unsupported_parameter",
            hint="leave prompt_logprobs and echo with logprobs out, or score with an artifact for a CPU",
        )

    def least_tokens(self, manifest: Manifest) -> int:
        return block_count.probe_tokens(manifest)

"""Runs an artifact's program: native segments and operators over mapped weights and a KV cache.

Nothing here compiles, traces or profiles. Loading checks that the artifact is whole and fits
this machine, binds every call of the program to its tensors, and replays the golden probe.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..artifacts import CacheGroup, Manifest, check_code, check_machine, load_manifest
from ..errors import UsageError
from ..kernels.native import load_code
from .batch import StepInputs
from .capacity.kv_memory import count_blocks
from .capacity.machine import default_threads
from .memory import Memory
from .native_program import NativeProgram
from .phases import OnPhase, Phases
from .probe import replay
from .sampling.device_sampling import Draws
from .weights import open_weights


class Executor:
    """A loaded artifact. `manifest` and `pools` (blocks of each cache group, by name) are read by the scheduler."""

    can_draw = False

    def __init__(self, manifest: Manifest, pools: Mapping[str, int], program: NativeProgram) -> None:
        self.manifest = manifest
        self.pools = pools
        self._program = program

    @classmethod
    def load(
        cls,
        directory: Path,
        manifest: Manifest | None = None,
        *,
        kv_memory: int | None = None,
        threads: int | None = None,
        max_num_seqs: int = 1,
        max_batch_tokens: int = 1,
        on_phase: OnPhase = lambda name, seconds: None,
    ) -> "Executor":
        """Load an artifact and make it ready to run.

        manifest: the artifact's, if it has been read already. kv_memory: bytes for the KV cache
        (default: what max_num_seqs sequences of full length need, at most half of the memory that
        weights and steps of max_batch_tokens leave free).
        on_phase(name, seconds) is called as each phase ends. Raises ArtifactError or MismatchError
        for an artifact that is damaged or does not fit, UsageError for a kv_memory below one block.
        """
        clock = Phases(on_phase)
        manifest = manifest or load_manifest(directory)
        check_machine(manifest)
        check_code(directory, manifest)
        clock.ended("check")
        load_code(directory / manifest.kernel_library)
        clock.ended("load_code")
        constants = {f"weight:{name}": memory for name, memory in open_weights(directory, manifest).items()}
        clock.ended("map_weights")
        pools = count_blocks(manifest, kv_memory, max_num_seqs=max_num_seqs, max_batch_tokens=max_batch_tokens)
        constants |= _allocate_kv(manifest, pools)
        clock.ended("allocate_kv")
        executor = cls(manifest, pools, _program(directory, manifest, constants, threads))
        clock.ended("bind")
        replay(manifest, executor.step, pools)
        clock.ended("probe")
        return executor

    def step(self, inputs: StepInputs, draws: Draws | None = None) -> NDArray[np.float32]:
        """Run one forward. Writes the new tokens' keys and values into the cache; releases the GIL meanwhile.

        Returns the logits [R, V] float32 of the wanted rows, or their vectors, the caller's to keep.
        """
        assert draws is None, "this executor cannot draw"
        self._program.run(inputs)
        return self._program.take(self.manifest.result, "float32", 2)

    def routes(self) -> NDArray[np.int32]:
        """As `StepExecutor.routes`."""
        assert self.manifest.routes is not None
        by_layer = [self._program.take(name, "int32", 3)[:, 0] for name in self.manifest.routes.results]
        return np.stack(by_layer, axis=1)

    def choose(self, logits: NDArray[np.float32], rows: Sequence[int]) -> list[int]:
        """As `StepExecutor.choose`: the largest."""
        return self._program.argmax(logits, rows)


def _program(directory: Path, manifest: Manifest, constants: Mapping[str, Memory], threads: int | None) -> NativeProgram:
    return NativeProgram(directory, manifest, manifest.step, constants, threads=threads or default_threads())


def _allocate_kv(manifest: Manifest, pools: Mapping[str, int]) -> dict[str, Memory]:
    """Caches by name, zero. A page takes memory only once a block in it is written (calloc)."""
    try:
        return {tensor: _zeros(group, pools[group.name]) for group in manifest.caches for tensor in group.tensors}
    except MemoryError as error:
        total = sum(pools[group.name] * group.bytes_per_block for group in manifest.caches)
        raise UsageError(f"the KV cache of {total:,} bytes cannot be allocated", hint="give less with --kv-memory") from error


def _zeros(group: CacheGroup, num_blocks: int) -> Memory:
    """One layer's keys, or its values."""
    data = np.zeros(num_blocks * group.bytes_per_block // len(group.tensors), np.uint8)
    return Memory(data, group.dtype, (num_blocks, group.num_kv_heads, group.block_size, group.row_elements))

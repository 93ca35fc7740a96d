"""Runs an artifact's program: native segments and operators over mapped weights and a KV cache.

Nothing here compiles, traces or profiles. Loading checks that the artifact is whole and fits
this machine, binds every call of the program to its tensors, and replays the golden probe.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..artifacts import Call, Manifest, check_code, check_machine, load_manifest
from ..errors import ArtifactError, UsageError
from ..kernels import ops
from .batch import StepInputs
from .kv_memory import default_kv_memory
from .machine import default_threads
from .probe import replay
from .weights import open_weights

_KV_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_STEP_INPUTS = ("tokens", "positions", "query_start", "seq_lens", "block_table", "slots")

Run = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]


class _BoundCall:
    """A call with its constant inputs in place; only values and step inputs are filled per step."""

    __slots__ = ("arguments", "frees", "outputs", "run", "variable")

    def __init__(self, call: Call, run: Run, constants: dict[str, torch.Tensor]) -> None:
        self.run = run
        self.arguments: list[Any] = [constants.get(name) for name in call.inputs]
        self.variable = [(index, name) for index, name in enumerate(call.inputs) if name not in constants]
        self.outputs = call.outputs
        self.frees = call.frees


class Executor:
    """A loaded artifact. `manifest` and `num_blocks` (blocks of the KV cache) are read by the scheduler."""

    def __init__(self, manifest: Manifest, num_blocks: int, calls: list[_BoundCall]) -> None:
        self.manifest = manifest
        self.num_blocks = num_blocks
        self._calls = calls
        self._result = manifest.program.result

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        kv_memory: int | None = None,
        threads: int | None = None,
        max_num_seqs: int = 1,
        max_batch_tokens: int = 1,
        on_phase: Callable[[str, float], None] = lambda name, seconds: None,
    ) -> "Executor":
        """Load an artifact and make it ready to run.

        kv_memory: bytes for the KV cache (default: what max_num_seqs sequences of full length
        need, at most half of the memory that weights and steps of max_batch_tokens leave free).
        on_phase(name, seconds) is called as each phase ends. Raises ArtifactError or MismatchError
        for an artifact that is damaged or does not fit, UsageError for a kv_memory below one block.
        """
        clock = _Phases(on_phase)
        manifest = load_manifest(directory)
        check_machine(manifest, torch_version=torch.__version__)
        check_code(directory, manifest)
        clock.ended("check")
        torch.set_num_threads(threads or default_threads())
        operators, segments = _load_code(directory, manifest)
        clock.ended("load_code")
        constants = {f"weight:{name}": tensor for name, tensor in open_weights(directory, manifest).items()}
        clock.ended("map_weights")
        num_blocks = _num_blocks(manifest, kv_memory, max_num_seqs, max_batch_tokens)
        constants |= _allocate_kv(manifest, num_blocks)
        executor = cls(manifest, num_blocks, [_bind(call, operators, segments, constants) for call in manifest.program.calls])
        clock.ended("allocate_kv")
        replay(manifest, executor.step)
        clock.ended("probe")
        return executor

    @torch.inference_mode()
    def step(self, inputs: StepInputs) -> torch.Tensor:
        """Run one forward. Writes the new tokens' keys and values into the cache.

        Returns the logits [S, V] float32 of each sequence's last token, the caller's to keep.
        """
        values: dict[str, torch.Tensor] = {f"input:{name}": getattr(inputs, name) for name in _STEP_INPUTS}
        for call in self._calls:
            arguments = call.arguments
            for index, name in call.variable:
                arguments[index] = values[name]
            outputs = call.run(arguments)
            for index, _ in call.variable:
                arguments[index] = None  # or the call would keep its activations until the next step
            for name, value in zip(call.outputs, outputs, strict=True):
                values[name] = value
            for name in call.frees:
                del values[name]
        return values[self._result]


class _Phases:
    def __init__(self, on_phase: Callable[[str, float], None]) -> None:
        self._on_phase, self._start = on_phase, time.perf_counter()

    def ended(self, name: str) -> None:
        now = time.perf_counter()
        self._on_phase(name, now - self._start)
        self._start = now


def _load_code(directory: Path, manifest: Manifest) -> tuple[dict[str, Any], dict[str, Run]]:
    try:
        ops.load(directory / manifest.kernel_library)
        runners = {s.key: torch._C._aoti.AOTIModelContainerRunnerCpu(str(directory / s.file), 1) for s in manifest.segments}
    except (OSError, RuntimeError) as error:
        raise ArtifactError(
            f"the artifact's code cannot be loaded: {error}", hint="build the artifact again with the torch of this machine"
        ) from error
    operators = {name: getattr(torch.ops.engine, name).default for name in ops.operator_names()}
    return operators, {key: cast(Run, runner.run) for key, runner in runners.items()}


def _bind(call: Call, operators: dict[str, Any], segments: dict[str, Run], constants: dict[str, torch.Tensor]) -> _BoundCall:
    missing = [name for name in call.inputs if name.startswith(("weight:", "kv:")) and name not in constants]
    if missing:
        raise ArtifactError(f"the program uses {missing[0]}, which the artifact does not hold")
    if call.kind == "segment":
        if call.target not in segments:
            raise ArtifactError(f"the program calls segment {call.target}, which the artifact does not hold")
        return _BoundCall(call, segments[call.target], constants)
    name = call.target.removeprefix("engine.")
    if name not in operators:
        raise ArtifactError(f"the program calls {call.target}, which this version of Engine does not have")
    return _BoundCall(call, _operator_run(operators[name], call.scalars), constants)


def _operator_run(operator: Any, scalars: list[int | float]) -> Run:
    return lambda tensors: (operator(*tensors, *scalars),)


def _num_blocks(manifest: Manifest, kv_memory: int | None, max_num_seqs: int, max_batch_tokens: int) -> int:
    spec, memory = manifest.kv_cache, manifest.memory
    if kv_memory is None:
        kv_memory = default_kv_memory(
            bytes_per_block=spec.bytes_per_block,
            block_size=spec.block_size,
            max_context=manifest.model.max_context,
            max_num_seqs=max_num_seqs,
            reserved=memory.weight_bytes + memory.bytes_per_token * max_batch_tokens + memory.bytes_per_sequence * max_num_seqs,
        )
    if kv_memory < spec.bytes_per_block:
        raise UsageError(
            f"--kv-memory {kv_memory:,} bytes holds no block of the KV cache ({spec.bytes_per_block:,} bytes for {spec.block_size} tokens)",
            hint="give at least a few hundred blocks",
        )
    return kv_memory // spec.bytes_per_block


def _allocate_kv(manifest: Manifest, num_blocks: int) -> dict[str, torch.Tensor]:
    """Caches by name, zero. A page takes memory only once a block in it is written (calloc)."""
    spec = manifest.kv_cache
    shape = (num_blocks, spec.num_kv_heads, spec.block_size, spec.head_dim)
    dtype = _KV_DTYPES[spec.dtype]
    size = math.prod(shape) * dtype.itemsize
    try:
        return {
            f"kv:{layer}.{part}": torch.from_numpy(np.zeros(size, np.uint8)).view(dtype).view(shape)
            for layer in range(spec.num_layers)
            for part in "kv"
        }
    except MemoryError as error:
        total = num_blocks * spec.bytes_per_block
        raise UsageError(f"the KV cache of {total:,} bytes cannot be allocated", hint="give less with --kv-memory") from error

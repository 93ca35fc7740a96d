"""Runs an artifact for NVIDIA without a GPU: the real runtime over the stand-in driver, every kernel by Triton's interpreter.

For a process of its own, started with TRITON_INTERPRET=1 (see `logits`): whether Triton compiles or
interprets is decided where a function is decorated. What runs is what a GPU would run, but for the
machine code: the artifact's graph templates, their addresses, grids, constants and order of arguments.
"""

import ctypes
import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fake_cuda import FakeCuda, Launched

REPLAY = "replay.json"


def logits(artifact: Path, dump: Path, steps: list[dict[str, Any]], output: Path) -> list[NDArray[np.float32]]:
    """Logits [S, V] of every step, computed in a child process.

    dump: the build's --debug-dump. steps: inputs by name as lists, run one after another over one KV cache, and
    as "draws" those of Draws. output: gets the logits, and as `tokensN` what the Nth step has chosen; of rows without a draw
    that must be the largest.
    """
    command = [sys.executable, "-P", str(Path(__file__)), str(artifact), str(dump), str(output)]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": path}
    done = subprocess.run(command, input=json.dumps(steps), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(output) as saved:
        return [saved[f"logits{index}"] for index in range(len(steps))]


def interpreted_kernels(artifact: Path, dump: Path) -> dict[str, Callable[[tuple[int, int, int], list[Any]], None]]:
    """For every kernel, by the SHA-256 of its cubin, what runs it: (grid, arguments) with addresses for memory."""
    from engine.artifacts import load_manifest
    from engine.artifacts.launch_plan import load_plan

    kernels = {}
    for segment in load_manifest(artifact).segments:
        sources = dump / "segments" / segment.key
        records = json.loads((sources / REPLAY).read_text())
        for kernel, record in zip(load_plan(artifact / segment.file).kernels, records, strict=True):
            kernels[kernel.cubin] = _interpreted(record, sources)
    return kernels


def interpret(fake: "FakeCuda", artifact: Path, dump: Path) -> None:
    """Let the stand-in compute what the artifact launches."""
    from engine.artifacts import load_manifest

    manifest = load_manifest(artifact)
    kernels = interpreted_kernels(artifact, dump)
    kinds = {hashlib.sha256((artifact / kernel.file).read_bytes()).hexdigest(): kernel.parameters for kernel in manifest.kernels}

    def run(launched: "Launched") -> None:
        digest = hashlib.sha256(launched.image).hexdigest()
        kernels[digest](launched.grid, launched.values(kinds[digest]))

    fake.declare(artifact, manifest)
    fake.on_launch(run)


def _interpreted(record: dict[str, Any], sources: Path) -> Callable[[tuple[int, int, int], list[Any]], None]:
    function = getattr(_module(record, sources), record["function"])
    dtypes = [_DTYPES.get(dtype) for dtype in record["dtypes"]]

    def run(grid: tuple[int, int, int], arguments: list[Any]) -> None:
        values = [_at(value, dtype) if dtype else value for value, dtype in zip(arguments, dtypes, strict=False)]
        function[grid](**dict(zip(record["parameters"], values, strict=True)), **record["constants"])

    return run


_DTYPES = {"*bf16": "bfloat16", "*fp32": "float32", "*fp16": "float16", "*i32": "int32", "*i64": "int64", "*u8": "uint8", "*i8": "int8"}


def _module(record: dict[str, Any], sources: Path) -> Any:
    if not record["is_here"]:
        return importlib.import_module(record["module"])
    path = sources / f"{record['module']}.py"
    spec = importlib.util.spec_from_file_location(f"{sources.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _at(address: int, dtype: str) -> Any:
    """A tensor of one element at an address: the interpreter only asks where it is and of what type."""
    import torch

    return torch.frombuffer((ctypes.c_char * 8).from_address(address), dtype=getattr(torch, dtype), count=1)


def _draws(given: dict[str, Any] | None) -> Any:
    from engine.artifacts.graph import DRAW_INPUTS
    from engine.runtime.sampling.device_sampling import Draws

    if given is None:
        return None
    return Draws(rows=np.array(given["rows"], np.intp), **{name: np.array(given[name], dtype) for name, dtype in DRAW_INPUTS.items()})


def main() -> None:
    artifact, dump, output = (Path(argument) for argument in sys.argv[1:])
    from fake_cuda import fake_cuda_installed
    from triton_launches import teach_interpreter

    from engine.artifacts import load_manifest
    from engine.runtime.batch import StepInputs
    from engine.runtime.cuda.executor import CudaExecutor

    teach_interpreter()
    manifest = load_manifest(artifact)
    given = json.load(sys.stdin)
    draws = [_draws(step.pop("draws", None)) for step in given]
    steps = [StepInputs({name: np.array(value, np.int32) for name, value in step.items()}) for step in given]
    results: dict[str, NDArray[Any]] = {}
    with fake_cuda_installed() as fake:
        interpret(fake, artifact, dump)
        sequences, tokens = max(graph.sequences for graph in manifest.graphs), max(graph.tokens for graph in manifest.graphs)
        executor = CudaExecutor.load(artifact, manifest, kv_memory=64 << 20, max_num_seqs=sequences, max_batch_tokens=tokens)
        for number in range(len(manifest.graphs)):
            executor.graphs[number]  # every template makes a graph
        for index, (step, drawn) in enumerate(zip(steps, draws, strict=True)):
            computed = executor.step(step, drawn)
            rows = [np.array(computed[row]) for row in range(step.rows)]
            results[f"logits{index}"] = np.stack(rows)
            chosen = results[f"tokens{index}"] = np.array(executor.choose(computed, range(len(rows))))
            greedy = sorted(set(range(len(rows))) - set(drawn.rows.tolist() if drawn else ()))
            assert chosen[greedy].tolist() == [int(rows[row].argmax()) for row in greedy]
        executor.close()
    np.savez(output, allow_pickle=False, **results)


if __name__ == "__main__":
    main()

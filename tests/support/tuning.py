"""Knows an artifact's candidates: for tests of `engine tune` without a GPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from engine.artifacts import load_manifest
from engine.artifacts.graph import Parameter
from engine.artifacts.launch_plan import Location, load_plan
from engine.artifacts.tuning import Timing, load_tuned


class Known(NamedTuple):
    """A kernel of some candidate. result: the number of the parameter that points to the problem's result, if one does."""

    digest: str
    parameters: list[Parameter]
    result: int | None


def candidate_kernels(artifact: Path) -> dict[bytes, Known]:
    """By their cubins."""
    known = {}
    for segment in load_manifest(artifact).segments:
        plan = load_plan(artifact / segment.file)
        for problem in plan.problems:
            for candidate in problem.candidates:
                for launch in candidate.launches:
                    kernel = plan.kernels[launch.kernel]
                    results = [
                        number
                        for number, argument in enumerate(launch.arguments)
                        if isinstance(argument, Location) and argument.buffer == len(problem.operands)
                    ]
                    known[(artifact / kernel.file).read_bytes()] = Known(kernel.cubin, kernel.parameters, results[0] if results else None)
    return known


def computed_candidates(artifact: Path, dump: Path, *, sizes: list[int], only: str, output: Path) -> list[Timing]:
    """What `engine tune` says where every launch is computed by Triton's interpreter, once each, in a process of its own."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(Path(__file__)), str(artifact), str(dump), str(output), only, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return [timing for timings in load_tuned(output).timings.values() for timing in timings]


def main() -> None:
    artifact, dump, output, only = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    sizes = [int(size) for size in sys.argv[5:]]
    from fake_cuda import fake_cuda_installed
    from interpreted_gpu import interpret
    from triton_launches import teach_bfloat16

    from engine.bench import candidates, tune
    from engine.runtime.cuda import timing

    # Once is enough where nothing is timed.
    candidates.STREAMED_BYTES, candidates.LEAST_LAUNCHES, timing.WARM_UP = 1, 1, 0
    tune.sizes_of = lambda problem, manifest: sizes
    teach_bfloat16()
    with fake_cuda_installed() as fake:
        interpret(fake, artifact, dump)
        tune.tune(tune.TuneOptions(artifacts=artifact, output=output, only=only, runs=1, context=40))


if __name__ == "__main__":
    main()

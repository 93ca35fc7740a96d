"""Knows an artifact's candidates: for tests of `engine tune` without a GPU."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

from engine.artifacts import Manifest, load_manifest
from engine.artifacts.graph import Parameter
from engine.artifacts.launch_plan import Location, PlanProblem, load_plan
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


def computed_candidates(artifact: Path, dump: Path, sizes: dict[str, list[int]], output: Path) -> dict[str, list[Timing]]:
    """What `engine tune` says where every launch is computed by Triton's interpreter, once each, in a process of its own.

    sizes: by a part of the names of the problems that are timed there.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(Path(__file__)), str(artifact), str(dump), str(output), json.dumps(sizes)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        only: [t for timings in load_tuned(output / f"{number}.json").timings.values() for t in timings]
        for number, only in enumerate(sizes)
    }


def _given(sizes: list[int], problem: PlanProblem, manifest: Manifest) -> list[int]:
    return sizes


def main() -> None:
    artifact, dump, output = (Path(argument) for argument in sys.argv[1:4])
    from fake_cuda import fake_cuda_installed
    from interpreted_gpu import interpret
    from triton_launches import teach_interpreter

    from engine.bench import candidates, tune
    from engine.bench.options import TuneOptions
    from engine.runtime.cuda import timing

    # Once is enough where nothing is timed.
    candidates.STREAMED_BYTES, candidates.LEAST_LAUNCHES, timing.WARM_UP = 1, 1, 0
    teach_interpreter()
    with fake_cuda_installed() as fake:
        interpret(fake, artifact, dump)
        for number, (only, sizes) in enumerate(json.loads(sys.argv[4]).items()):
            tune.sizes_of = partial(_given, sizes)
            tune.tune(TuneOptions(artifacts=artifact, output=output / f"{number}.json", only=only, runs=1, context=40))


if __name__ == "__main__":
    main()

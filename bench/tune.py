"""`engine tune`: times an artifact's candidates on this machine's GPU, and writes which to launch for which sizes."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..artifacts import Manifest, check_code, load_manifest
from ..artifacts.launch_plan import LaunchPlan, PlanCandidate, PlanProblem, load_plan
from ..artifacts.tuning import TUNED_VERSION, Choice, Timing, Tuned
from ..errors import DeviceError, UsageError
from ..runtime.cuda.device import Device, Resource
from ..runtime.cuda.find_device import find_device
from ..runtime.cuda.kernels import Kernels
from .candidates import Bench, Setting, agree
from .options import TuneOptions

_WIDTH = 160
"""Columns of text that goes to a file or another program."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A problem, the plan that it is in, and the sizes at which its candidates are timed."""

    problem: PlanProblem
    plan: LaunchPlan
    sizes: list[int]


def tune(options: TuneOptions, console: Console | None = None) -> Tuned:
    """Measure, print and write. The artifact is only read.

    Raises UsageError for an artifact that was not built to be tuned, MismatchError without its GPU, DeviceError for what the driver
    refuses.
    """
    console = console or Console(stderr=True, width=None if sys.stderr.isatty() else _WIDTH)
    manifest = load_manifest(options.artifacts)
    check_code(options.artifacts, manifest)
    work = find_work(options.artifacts, manifest, options.only)
    device = find_device(manifest)
    setting = Setting(context=min(options.context, manifest.model.max_context), block_size=manifest.caches[0].block_size)
    timings: dict[str, list[Timing]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    with device, ExitStack() as held, Progress(*columns, console=console) as progress:
        stream = held.enter_context(device.stream())
        task = progress.add_task("tuning", total=sum(len(each.sizes) for each in work))
        for each in work:
            progress.update(task, description=each.problem.name)
            timings[each.problem.name] = []
            for timing in measure(device, stream, options, each, setting):
                timings[each.problem.name].append(timing)
                progress.advance(task)
    choices = {each.problem.name: choose(each.problem, timings[each.problem.name], options.margin) for each in work}
    tuned = Tuned(version=TUNED_VERSION, target=manifest.target, device=device.name, choices=choices, timings=timings)
    write(tuned, options.output)
    console.print(table(work, tuned))
    console.print(f"\n{options.output}: give it to the build as --tuned {options.output}")
    return tuned


def find_work(directory: Path, manifest: Manifest, only: str) -> list[Work]:
    """Every problem of the artifact's plans once. Raises UsageError where there is none, or none whose name has `only` in it."""
    plans = [load_plan(directory / segment.file) for segment in manifest.segments] if manifest.graphs else []
    problems = {problem.name: (problem, plan) for plan in plans for problem in plan.problems}
    if not problems:
        raise UsageError(f"{directory} was not built to be tuned", hint="build it with --target sm90 --tunable (weights are not needed)")
    work = [
        Work(problem=problem, plan=plan, sizes=sizes_of(problem, manifest)) for problem, plan in problems.values() if only in problem.name
    ]
    if not work:
        raise UsageError(f"no problem's name has {only!r} in it", hint=f"there are: {', '.join(sorted(problems))}")
    return work


def sizes_of(problem: PlanProblem, manifest: Manifest) -> list[int]:
    """The sizes of the artifact's graphs."""
    decode = {graph.sequences for graph in manifest.graphs if graph.kind == "decode"}
    mixed = {graph.tokens for graph in manifest.graphs if graph.kind == "mixed"}
    return sorted({"decode": decode, "prefill": mixed, "rows": decode | mixed}[problem.kind])


def measure(device: Device, stream: Resource, options: TuneOptions, work: Work, setting: Setting) -> Iterator[Timing]:
    """Time every candidate of a problem at every size."""
    problem, plan = work.problem, work.plan
    with ExitStack() as held, Bench.open(device, stream, problem, setting, work.sizes) as bench:
        kernels = Kernels(device, options.artifacts, [kernel.info() for kernel in plan.kernels], held)
        for first, size in zip([1, *(size + 1 for size in work.sizes)], work.sizes, strict=False):
            bench.set_size(size)
            first_guess = at(problem.policy, size)
            fitting = [candidate for candidate in problem.candidates if candidate.covers(first, size)]
            fitting.sort(key=lambda candidate: candidate.name != first_guess)  # with its results the others are compared
            seconds: dict[str, float] = {}
            refused: list[str] = []
            expected = None
            for candidate in fitting:
                bench.clear_result()
                seconds[candidate.name] = bench.seconds(candidate, kernels, plan.kernels, size, options.runs)
                result = bench.result(size)
                if expected is None:
                    expected = result
                if not agree(result, expected):
                    refused.append(candidate.name)
            yield Timing(size=size, seconds=seconds, refused=refused)


def at(ranges: Choice, size: int) -> str:
    """The candidate that ranges give to a size."""
    return next(use for up_to, use in ranges if up_to is None or size <= up_to)


def choose(problem: PlanProblem, timings: Sequence[Timing], margin: float) -> Choice:
    """For each size that was timed, and those below it down to the one before, the fastest candidate, the policy's where none is
    faster by `margin` percent. Beyond the last size, what is without end.

    Raises DeviceError where the policy's own results are no numbers: then nothing was measured.
    """
    candidates = {candidate.name: candidate for candidate in problem.candidates}
    ranges: Choice = []
    for timing in timings:
        first_guess = at(problem.policy, timing.size)
        if first_guess in timing.refused:
            raise DeviceError(f"{first_guess!r} of {problem.name} computes no numbers at size {timing.size}", hint="run tests/gpu here")
        allowed = {name: seconds for name, seconds in timing.seconds.items() if name not in timing.refused}
        fastest = min(allowed, key=lambda name: allowed[name])
        use = fastest if allowed[fastest] * (1 + margin / 100) < allowed[first_guess] else first_guess
        if ranges and ranges[-1][1] == use:
            ranges.pop()
        ranges.append((timing.size, use))
    return _without_end(ranges, candidates, problem.policy[-1][1])


def _without_end(ranges: Choice, candidates: dict[str, PlanCandidate], otherwise: str) -> Choice:
    _, use = ranges[-1]
    if candidates[use].most is None:
        return [*ranges[:-1], (None, use)]
    return [*ranges, (None, otherwise)]


def write(tuned: Tuned, path: Path) -> None:
    """Raises UsageError if the file cannot be written."""
    try:
        path.write_bytes(tuned.encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", hint="choose another place with -o") from error


def table(work: Sequence[Work], tuned: Tuned) -> Table:
    """Where the choice is another than the first guess, and candidates with other results."""
    drawn = Table(title=f"Tuned on {tuned.device}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("problem", "size", "first guess", "us", "choice", "us", "faster"):
        drawn.add_column(column, justify="right" if column in ("size", "us", "faster") else "left", overflow="fold")
    kept = 0
    for each in work:
        problem, name = each.problem, each.problem.name
        for timing in tuned.timings[name]:
            guess, chosen = at(problem.policy, timing.size), at(tuned.choices[name], timing.size)
            before, after = timing.seconds[guess], timing.seconds[chosen]
            if chosen == guess:
                kept += 1
            else:
                drawn.add_row(name, str(timing.size), guess, f"{before * 1e6:.1f}", chosen, f"{after * 1e6:.1f}", f"{before / after:.2f}x")
            if timing.refused:
                drawn.add_row(name, str(timing.size), f"[red]other results, not taken: {', '.join(timing.refused)}")
    drawn.caption = f"{kept} of {sum(map(len, tuned.timings.values()))} keep the first guess; all times are in the file"
    drawn.caption_justify = "left"
    return drawn

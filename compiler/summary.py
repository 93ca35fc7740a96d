"""What is printed at the end of a build."""

from collections.abc import Iterable
from pathlib import Path

from ..artifacts import Manifest
from ..artifacts.launch_plan import load_plan
from ..artifacts.tuning import Tuned
from .lower import Lowered
from .progress import BuildSummary, Reporter


def summarize(reporter: Reporter, output: Path, manifest: Manifest, *, compiled: int) -> BuildSummary:
    """Print and return what was done. compiled: how many of the artifact's segments."""
    summary = reporter.summary
    summary.output, summary.target = str(output), manifest.target
    summary.segments_compiled, summary.segments_reused = compiled, len(manifest.segments) - compiled
    summary.segment_calls = sum(segment.calls for segment in manifest.segments)
    summary.kernels = _kernels_summary(manifest)
    summary.fusions = {report.name: report.matches for report in manifest.fusion}
    summary.unfused = manifest.unfused
    summary.code_bytes = sum(manifest.files[name].bytes for name in manifest.code_files)
    summary.weight_bytes = sum(info.bytes for name, info in manifest.files.items() if name.startswith("weights/"))
    summary.probe = f"recorded on the {manifest.probe.recorded_on}" if manifest.probe.prompts else "none, as there are no weights"
    reporter.print_summary()
    return summary


def tuning_summary(tuned: Tuned | None, segments: Iterable[Lowered]) -> str:
    """How many of the tuned choices the compiled segments took; empty without any."""
    if tuned is None:
        return ""
    used = {name for segment in segments for name in load_plan(segment.file).tuned}
    return f"{len(used)} of {len(tuned.choices)} choices measured on {tuned.device}"


def _kernels_summary(manifest: Manifest) -> str:
    if not manifest.kernels:
        return ""
    registers = max(kernel.registers for kernel in manifest.kernels)
    spilling = sorted({f"{kernel.function} ({kernel.stack_bytes} bytes)" for kernel in manifest.kernels if kernel.stack_bytes})
    stack = f"stack in {', '.join(spilling)}" if spilling else "no stack"
    return f"{len(manifest.kernels)} cubins, {len(manifest.graphs)} CUDA graphs; at most {registers} registers, {stack}"

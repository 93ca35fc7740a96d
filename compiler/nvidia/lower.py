"""Stage 5 for NVIDIA: segments are launch plans with their cubins."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...artifacts.launch_plan import load_plan
from ...artifacts.nvidia_target import NvidiaTarget
from ...artifacts.store.keys import Identity, identity
from ...artifacts.tuning import Choice
from .. import segment_graph
from ..sources import sources
from ..toolchain import Versions
from .compile_form import compile_form, cubin_name

PLAN_SOURCES = (
    "artifacts/graph.py",
    "artifacts/json_file.py",
    "artifacts/launch_plan.py",
    "artifacts/numbers.py",
    "artifacts/tuning.py",
    "compiler/nvidia",
    "compiler/nvidia/guard.cpp",
    "compiler/segment_graph.py",
    "errors.py",
    "kernels/attention/options.py",
    "kernels/cut_operators.py",
    "kernels/fakes.py",
    "kernels/formats.py",
    "kernels/linear/blocks.py",
    "kernels/native.py",
    "kernels/nvidia",
    "kernels/ops.py",
    "kernels/row_operators.py",
    "kernels/schemas.py",
)
"""Every file of ours that makes plans, and what becomes graphs of them; test_build_keys.py compares them with the imports."""


@dataclass(frozen=True, kw_only=True)
class PlanRecipe:
    """What a launch plan is made from. form: the segment's parts as canonical text. choices: of `engine tune`, by problem, as JSON."""

    form: Mapping[str, str]
    choices: Mapping[str, str]
    tunable: bool
    target: NvidiaTarget
    toolchain: Versions
    sources: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class NvidiaBackend:
    """Segments as launch plans, each with its cubins.

    choices: what `engine tune` found out, by problem. tunable: whether plans hold what it needs for that.
    """

    target: NvidiaTarget
    versions: Versions
    choices: Mapping[str, Choice] = field(default_factory=dict)
    tunable: bool = False
    suffix: str = ".json"

    def segment(self, form_text: str) -> Identity:
        form = segment_graph.parts(form_text)
        recipe = PlanRecipe(
            form=form,
            choices={problem: json.dumps(choice) for problem, choice in self.choices.items()},
            tunable=self.tunable,
            target=self.target,
            toolchain=self.versions,
            sources=sources(*PLAN_SOURCES),
        )
        return identity("plan", recipe)

    def compile(self, form_text: str, output: Path, sources: Path | None) -> None:
        compile_form(form_text, output, sources, self.choices, tunable=self.tunable)

    def parts(self, compiled: Path) -> Sequence[str]:
        return sorted({cubin_name(kernel.cubin) for kernel in load_plan(compiled).kernels})

    def library(self) -> None:
        return None

    def compile_library(self, output: Path) -> None:
        raise AssertionError("library says that there is none")

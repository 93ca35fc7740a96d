"""Stage 5 for NVIDIA: segments are launch plans with their cubins."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...artifacts.launch_plan import load_plan
from ...artifacts.nvidia_target import NvidiaTarget
from ...artifacts.store.keys import Identity, identity
from ...artifacts.tuning import Choice
from ...kernels.nvidia.emitters import MODULES, operator_name
from .. import segment_graph
from ..imports import needed_by
from ..sources import sources
from ..toolchain import Versions
from .compile_form import compile_form, cubin_name

_MAKER = "compiler/nvidia/compile_form.py"
_READ = ("compiler/nvidia/guard.cpp",)
"""Files of ours that making a plan reads without importing them."""


def plan_sources(form_text: str) -> tuple[str, ...]:
    """Every file of ours that makes the plan of a form: what compile_form.py imports, and the emitters of the form's operators."""
    operators = {operator_name(node) for node, *_ in json.loads(form_text)["nodes"]}
    emitters = sorted({f"kernels/nvidia/{MODULES[name]}.py" for name in operators & MODULES.keys()})
    return (*_READ, *sorted(needed_by(_MAKER, *emitters)))


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
            sources=sources(*plan_sources(form_text)),
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

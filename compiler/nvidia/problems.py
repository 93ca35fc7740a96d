"""What of a segment can be tuned, as data for its plan: every problem with all of its candidates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sympy

from ...artifacts.launch_plan import Location, PlanCandidate, PlanLaunch, PlanOperand, PlanProblem
from ...kernels.nvidia.choices import Candidate, Problem
from ...kernels.nvidia.launch import Condition, Launch, Size, Tensor
from .cubin import item_bytes
from .expression import expression


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A candidate's launches, and bytes of the buffers that they want, numbered from `first_buffer` on."""

    launches: list[Launch]
    first_buffer: int
    buffers: list[Size]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A problem and what each candidate of it launches."""

    problem: Problem
    cuts: dict[str, Cut]

    @classmethod
    def of(cls, problem: Problem, buffers: list[Size]) -> "Found":
        """Asks every candidate; what they allocate in `buffers` is taken out again."""
        return cls(problem=problem, cuts={name: _cut(problem, candidate, buffers) for name, candidate in problem.candidates.items()})

    def describe(self, plan_launch: Callable[[Launch], PlanLaunch], named: Callable[[Size], Size]) -> PlanProblem:
        """As a plan says it. plan_launch: a launch as data, in the segment's buffers. named: a size in the form's names."""
        problem = self.problem
        places = dict.fromkeys(operand.tensor.buffer for operand in problem.operands)
        numbers = {buffer: number for number, buffer in enumerate([*places, problem.out.buffer])}
        assert problem.out.buffer not in places, "a result lies in memory of its own"
        return PlanProblem(
            name=problem.name,
            kind=problem.kind,
            dimensions={str(named(symbol)): expression(value) for symbol, value in problem.dimensions.items()},
            operands=[self._operand(buffer, named) for buffer in places],
            out_bytes=expression(named(_extent(problem.out))),
            out_dtype=problem.out.dtype,
            policy=[(each.up_to, each.use) for each in problem.policy],
            candidates=[
                self._candidate(name, cut, problem.candidates[name], numbers, plan_launch, named) for name, cut in self.cuts.items()
            ],
        )

    def _operand(self, buffer: Any, named: Callable[[Size], Size]) -> PlanOperand:
        operands = [operand for operand in self.problem.operands if operand.tensor.buffer == buffer]
        first = operands[0]
        return PlanOperand(
            name=first.name,
            bytes=expression(named(sympy.Max(*(_extent(operand.tensor) for operand in operands)))),
            dtype=first.tensor.dtype,
            content=first.content,
            streamed=first.streamed,
            routes=first.routes,
        )

    def _candidate(
        self,
        name: str,
        cut: Cut,
        candidate: Candidate,
        numbers: dict[Any, int],
        plan_launch: Callable[[Launch], PlanLaunch],
        named: Callable[[Size], Size],
    ) -> PlanCandidate:
        own = {cut.first_buffer + index: len(numbers) + index for index in range(len(cut.buffers))}
        launches = [_renumbered(plan_launch(launch), numbers | own) for launch in cut.launches]
        return PlanCandidate(
            name=name,
            least=candidate.least,
            most=candidate.most,
            buffers=[expression(named(size)) for size in cut.buffers],
            launches=launches,
        )


def _cut(problem: Problem, candidate: Candidate, buffers: list[Size]) -> Cut:
    mark = len(buffers)
    launches = candidate.launches(Condition(value=problem.size, minimum=candidate.least, maximum=candidate.most))
    own = buffers[mark:]
    del buffers[mark:]
    return Cut(launches=launches, first_buffer=mark, buffers=own)


def _renumbered(launch: PlanLaunch, numbers: dict[Any, int]) -> PlanLaunch:
    arguments = [
        Location(buffer=numbers[argument.buffer], offset=argument.offset) if isinstance(argument, Location) else argument
        for argument in launch.arguments
    ]
    return msgspec.structs.replace(launch, arguments=arguments)


def _extent(tensor: Tensor) -> Size:
    """Bytes from the start of its buffer to the end of its last element."""
    pairs: Sequence[tuple[Size, Size]] = list(zip(tensor.shape, tensor.strides, strict=True))
    last = tensor.offset + sum((size - 1) * stride for size, stride in pairs)
    return (last + 1) * item_bytes(tensor.dtype)

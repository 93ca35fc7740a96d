"""Expressions, workspaces and templates: the parts that turn a launch plan into a CUDA graph."""

from typing import Any

import msgspec
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from engine.artifacts import Call, InputInfo
from engine.artifacts.graph import Parameter, Place
from engine.artifacts.launch_plan import Guard, LaunchPlan, Location, PlanKernel, PlanLaunch, evaluate, holds
from engine.compiler.nvidia.cubin import is_multiple
from engine.compiler.nvidia.expression import as_guard, expression
from engine.compiler.nvidia.graphs import Bucket, KernelTable, make_template
from engine.compiler.nvidia.workspace import ALIGNMENT, assign_offsets
from engine.compiler.partition import Partition
from engine.errors import ArtifactError, BuildError

T, S = (sympy.Symbol(name, integer=True, positive=True) for name in "TS")


@pytest.mark.parametrize(
    "size",
    [T, T * 576, (T + 63) // 64 * 8, sympy.Max(1, 264 // (S * 3)), sympy.Min(T, 64) * S, (191 + 3 * S) // (3 * S), T % 16 + 1, T - S + 3],
)
def test_an_expression_means_what_sympy_means(size: sympy.Expr) -> None:
    for t in (1, 2, 63, 64, 65, 2048):
        for s in (1, 5, 256):
            assert evaluate(expression(size), {"T": t, "S": s}) == int(size.subs({T: t, S: s}))


@pytest.mark.parametrize("broken", ["U", ["^", 1, 2], ["+", 1], [1, 2, 3], None, 1.5, {"a": 1}])
def test_an_expression_that_is_none(broken: object) -> None:
    with pytest.raises(ArtifactError, match="expression"):
        evaluate(broken, {"T": 1})  # type: ignore[arg-type]


def test_an_expression_that_a_plan_cannot_say() -> None:
    with pytest.raises(BuildError, match="no way to say"):
        expression(sympy.sqrt(T))


@pytest.mark.parametrize(
    "relation", [sympy.Eq(T, 2 * S), T >= S + 1, T > S + 1, T <= 3 * S, T < 3 * S, sympy.Gt(24 * T, 48), sympy.Ge(24 * T, 40)]
)
def test_a_guard_holds_where_its_relation_does(relation: Any) -> None:
    guard = as_guard(relation)
    assert guard is not None
    for t in range(1, 9):
        for s in range(1, 9):
            assert holds(guard, {"T": t, "S": s}) == bool(relation.subs({T: t, S: s})), (t, s)


def test_a_relation_that_is_no_range() -> None:
    assert as_guard(sympy.Ne(T - 1, 1)) is None
    assert as_guard(T >= 2) is None
    assert as_guard(sympy.StrictLessThan(1, T, evaluate=False)) is None
    assert as_guard(sympy.Gt(24 * T, 24)) is None  # strides of axes one of which may have one element
    assert as_guard(sympy.Lt(24, 24 * T)) is None
    assert as_guard(T >= 3) is not None
    with pytest.raises(BuildError, match="holds only where"):
        as_guard(sympy.Ne(T, S))


def test_only_provable_multiples_are_claimed() -> None:
    assert is_multiple(0, 16)
    assert is_multiple(48 * T + 32, 16)
    assert not is_multiple(48 * T + 8, 16)
    assert not is_multiple(T, 16)
    assert not is_multiple(16 * T // 3, 16)
    assert not is_multiple(sympy.Rational(1, 2) * 16 * T, 16)


buffers = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 30), st.integers(0, 12)), min_size=1, max_size=40)


@given(buffers)
def test_nothing_alive_overlaps(described: list[tuple[int, int, int]]) -> None:
    sizes = {index: size for index, (size, _, _) in enumerate(described)}
    lifetimes = {index: (first, first + length) for index, (_, first, length) in enumerate(described)}
    offsets, end = assign_offsets(sizes, lifetimes)
    for a in sizes:
        assert offsets[a] % ALIGNMENT == 0
        assert offsets[a] + sizes[a] <= end
        for b in sizes:
            alive_together = lifetimes[a][0] <= lifetimes[b][1] and lifetimes[b][0] <= lifetimes[a][1]
            if a < b and alive_together and sizes[a] and sizes[b]:
                assert offsets[a] + sizes[a] <= offsets[b] or offsets[b] + sizes[b] <= offsets[a]


def test_memory_is_used_again() -> None:
    sizes = dict.fromkeys(range(50), 1000)
    _, end = assign_offsets(sizes, {index: (index, index + 1) for index in range(50)})
    assert end == 2 * 1024


def kernel(name: str, given: list[Parameter], scratch_bytes: int = 0) -> PlanKernel:
    """Its parameters: those given, and Triton's own two."""
    return PlanKernel(
        cubin=name * 32,
        function=name,
        threads=128,
        shared_bytes=0,
        parameters=[*given, "pointer", "pointer"],
        registers=10,
        stack_bytes=0,
        scratch_bytes=scratch_bytes,
    )


POINTERS: list[Parameter] = ["pointer", "pointer"]


# y[T] = f(x[T]), in other kernels up to 16 and beyond; a temporary of 4 bytes a token
PLAN = LaunchPlan(
    inputs=[["d0"], [8]],
    buffers=[["*", 4, "d0"], ["*", 4, "d0"]],
    outputs=[Location(buffer=3, offset=0)],
    output_shapes=[["d0"]],
    kernels=[kernel("a", [*POINTERS, "int32"]), kernel("b", POINTERS), kernel("c", [*POINTERS, "pointer"])],
    launches=[
        PlanLaunch(kernel=0, grid=("d0", 1, 1), arguments=[Location(buffer=0), Location(buffer=2), "d0"]),
        PlanLaunch(
            kernel=1, grid=(1, 1, 1), arguments=[Location(buffer=2), Location(buffer=3)], when=[Guard(value="d0", minimum=0, maximum=16)]
        ),
        PlanLaunch(
            kernel=2,
            grid=(["//", ["+", "d0", 15], 16], 1, 1),
            arguments=[Location(buffer=2), Location(buffer=3), Location(buffer=1, offset=8)],
            when=[Guard(value="d0", minimum=17, maximum=None)],
        ),
    ],
    guards=[Guard(value="d0", minimum=0, maximum=1000)],
)
CALLS = [
    Call(kind="segment", target="f", inputs=["input:tokens", "weight:w"], outputs=["value:0"]),
    Call(kind="segment", target="f", inputs=["value:0", "weight:v"], outputs=["value:1"]),
    Call(kind="segment", target="f", inputs=["value:1", "weight:w"], outputs=["value:2"]),
]


def bucket(tokens: int) -> Bucket:
    return Bucket(kind="mixed", sizes={"T": tokens})


def program(*calls: Call) -> Partition:
    """These calls over the step's tokens alone; the last one's value is the result."""
    inputs = [InputInfo(name="tokens", dtype="int32", dims=["T"])]
    return Partition(inputs=inputs, calls=list(calls), forms={}, results={"logits": calls[-1].outputs[0]})


def test_a_template_launches_what_fits_its_size() -> None:
    table = KernelTable({"f": PLAN})
    small, _ = make_template(program(*CALLS), {"f": PLAN}, table, bucket(16))
    large, workspace = make_template(program(*CALLS), {"f": PLAN}, table, bucket(40))
    assert [node.kernel for node in small.nodes] == [0, 1] * 3
    assert [node.kernel for node in large.nodes] == [0, 2] * 3
    assert [node.grid for node in large.nodes[:2]] == [(40, 1, 1), (3, 1, 1)]
    assert large.nodes[0].arguments[2:] == [40, 0, 0]  # and Triton's hidden parameters
    weight = large.nodes[1].arguments[2]
    assert isinstance(weight, Place)
    assert (large.bases[weight.base], weight.offset) == ("weight:w", 8)
    assert large.outputs["logits"].shape == [40]
    assert workspace == 2 * ALIGNMENT  # of six buffers no more than two are alive at once
    assert small.bases == ["workspace", "input:tokens"]


def test_memory_for_a_kernel_s_own_use_is_in_the_workspace() -> None:
    """As much as all blocks of the launch want, alive at that launch alone, passed in the first of Triton's parameters."""
    kernels = [*PLAN.kernels[:2], kernel("c", [*POINTERS, "pointer"], scratch_bytes=256)]
    plan = msgspec.structs.replace(PLAN, kernels=kernels)
    template, workspace = make_template(program(*CALLS), {"f": plan}, KernelTable({"f": plan}), bucket(40))
    for node in template.nodes[1::2]:
        scratch, profile = node.arguments[-2:]
        assert isinstance(scratch, Place)
        assert template.bases[scratch.base] == "workspace"
        assert profile == 0
        taken = [place.offset for place in node.arguments[:-2] if isinstance(place, Place) and place.base == scratch.base]
        assert all(abs(scratch.offset - other) >= ALIGNMENT for other in taken)
        assert scratch.offset + node.grid[0] * 256 <= workspace
    assert workspace == 2 * ALIGNMENT + 3 * 256


def test_a_size_that_a_plan_does_not_hold_for() -> None:
    with pytest.raises(BuildError, match="mixed-1001"):
        make_template(program(*CALLS), {"f": PLAN}, KernelTable({"f": PLAN}), bucket(1001))


def test_shapes_that_do_not_fit() -> None:
    calls = [*CALLS[:1], Call(kind="segment", target="f", inputs=["weight:w", "value:0"], outputs=["value:1"])]
    with pytest.raises(BuildError, match="takes"):
        make_template(program(*calls), {"f": PLAN}, KernelTable({"f": PLAN}), bucket(5))

"""The compile-only device: which releases it holds for, what it says of others, and that it leaves nothing behind."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import msgspec
import pytest
import torch

from engine.artifacts.launch_plan import LaunchPlan, Location, evaluate, holds
from engine.compiler.nvidia import releases
from engine.errors import BuildError


def test_the_installed_releases_are_known() -> None:
    releases.check_versions()


@pytest.mark.parametrize(("package", "release"), [("torch", "1.9.0"), ("torch", "2.99.1+cpu"), ("triton", "2.0.0"), ("triton", "nightly")])
def test_other_releases_are_refused(package: str, release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if package == "torch":
        monkeypatch.setattr(torch, "__version__", release)
    else:
        monkeypatch.setattr(releases, "version", lambda name: release)
    with pytest.raises(BuildError, match=package) as error:
        releases.check_versions()
    assert release in error.value.message
    assert ", ".join(releases.HOLDS_FOR[package]) in (error.value.hint or "")


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(releases, "version", missing)
    with pytest.raises(BuildError, match="Triton is not installed") as error:
        releases.check_versions()
    assert "engine-llm[nvidia]" in (error.value.hint or "")


# What a release must do for us; a new one is added to HOLDS_FOR when this holds with it.
SELF_TEST = """
import json, sys
from pathlib import Path
from engine.compiler.nvidia import device, releases
scratch = Path(sys.argv[1])
device.install(scratch)
device.install(scratch)
from engine.compiler.nvidia.plan import lower_form
form = {
    "inputs": [["int32", ["d0"]], ["float32", [24]], ["bfloat16", ["d1", 40], [80, 1]]],
    "nodes": [
        ["aten.to.dtype", [{"v": 0}, {"dtype": "float32"}], {}],
        ["aten.unsqueeze.default", [{"v": 3}, 1], {}],
        ["aten.mul.Tensor", [{"v": 4}, {"v": 1}], {}],
        ["aten.cos.default", [{"v": 5}], {}],
        ["aten.slice.Tensor", [{"v": 2}, 1, 8, 24], {}],
        ["aten.slice.Tensor", [{"v": 0}, 0, 1, 9223372036854775807], {}],
        ["aten.index_select.default", [{"v": 2}, 0, {"v": 8}], {}],
    ],
    "outputs": [6, 7, 9],
}
if len(sys.argv) > 2:
    form = json.loads(sys.argv[2])
lowered = lower_form(form, scratch, {})
print(lowered.plan.encode().decode())
"""


def test_what_is_asked_of_a_release(tmp_path: object) -> None:
    """Symbolic sizes, a view that costs nothing, fused operators in one kernel, row selection in another; no device, no driver."""
    done = subprocess.run([sys.executable, "-P", "-c", SELF_TEST, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan = msgspec.json.decode(done.stdout, type=LaunchPlan)
    assert len(plan.launches) == 2
    assert plan.output_shapes == [["d0", 24], ["d1", 16], [["+", -1, "d0"], 40]]
    view = plan.outputs[1]
    assert (view.buffer, view.offset) == (2, 16)
    sizes = {"d0": 7, "d1": 5}
    assert sorted(evaluate(size, sizes) for size in plan.buffers) == sorted([7 * 24 * 4, 6 * 40 * 2])
    assert all(kernel.parameters[-2:] == ["pointer", "pointer"] for kernel in plan.kernels)


def test_what_the_code_takes_for_granted_is_a_guard(tmp_path: object) -> None:
    """Five rows of a tensor with any number of them: there must be five."""
    form = {
        "inputs": [["float32", ["d0", 16]]],
        "nodes": [["aten.slice.Tensor", [{"v": 0}, 0, 0, 5], {}], ["aten.mul.Tensor", [{"v": 1}, 2.0], {}]],
        "outputs": [2],
    }
    done = subprocess.run([sys.executable, "-P", "-c", SELF_TEST, str(tmp_path), json.dumps(form)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    guards = msgspec.json.decode(done.stdout, type=LaunchPlan).guards
    assert all(holds(guard, {"d0": size}) for guard in guards for size in (5, 6, 2048))
    assert not all(holds(guard, {"d0": 4}) for guard in guards)


def test_a_sum_over_rows_and_a_single_element(tmp_path: object) -> None:
    """A reduction, of which Inductor would time several configurations, and a kernel of which no size is open."""
    form = {
        "inputs": [["float32", ["d0", 24]], ["float32", [1]]],
        "nodes": [["aten.sum.dim_IntList", [{"v": 0}, [1]], {}], ["aten.exp.default", [{"v": 1}], {}]],
        "outputs": [2, 3],
    }
    done = subprocess.run([sys.executable, "-P", "-c", SELF_TEST, str(tmp_path), json.dumps(form)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan = msgspec.json.decode(done.stdout, type=LaunchPlan)
    assert [evaluate(launch.grid[0], {"d0": 1}) for launch in plan.launches] == [1, 1]
    assert plan.output_shapes == [["d0"], [1]]


def test_a_size_that_inductor_computes_beforehand(tmp_path: object) -> None:
    """Axes exchanged in memory: a kernel is given how far the elements of one of them lie apart."""
    form = {
        "inputs": [["bfloat16", ["d0", 4, 24]]],
        "nodes": [
            ["aten.transpose.int", [{"v": 0}, 0, 1], {}],
            ["aten.clone.default", [{"v": 1}], {"memory_format": {"format": "contiguous_format"}}],
        ],
        "outputs": [2],
    }
    done = subprocess.run([sys.executable, "-P", "-c", SELF_TEST, str(tmp_path), json.dumps(form)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan = msgspec.json.decode(done.stdout, type=LaunchPlan)
    assert plan.output_shapes == [[4, "d0", 24]]
    (launch,) = plan.launches
    given = [evaluate(argument, {"d0": 7}) for argument in launch.arguments if not isinstance(argument, Location)]
    assert 7 * 24 in given
    assert 4 * 7 * 24 in given

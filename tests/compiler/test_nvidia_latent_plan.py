"""The segment that attention over latents is for NVIDIA: what each size of step launches, and what `engine tune` finds in it."""

import json
import subprocess
import sys

import pytest

from engine.artifacts import CacheGroup
from engine.artifacts.launch_plan import LaunchPlan, evaluate, holds, load_plan
from engine.bench.candidates import Setting
from engine.compiler.nvidia.graphs import buckets

HEADS, RANK, ROPE = 16, 64, 16
GROUP = CacheGroup(name="latent", kind="latent", layers=[0], num_kv_heads=1, head_dim=RANK + ROPE, block_size=32, dtype="bfloat16")
FORM = {
    "inputs": [
        ["bfloat16", [HEADS, "d0", RANK]],
        ["bfloat16", ["d0", HEADS, ROPE]],
        ["bfloat16", ["d0", RANK + ROPE]],
        ["bfloat16", [7, 1, 32, RANK + ROPE]],
        ["int32", ["d1"]],
        ["int32", ["d2"]],
        ["int32", ["d2", "d3"]],
        ["int32", ["d0"]],
    ],
    "nodes": [["engine.latent_attention.default", [*({"v": index} for index in range(8)), 0.1], {}]],
    "outputs": [8],
}
LOWER = """
import json, sys
from pathlib import Path
from engine.compiler.nvidia import device
scratch = Path(sys.argv[1])
device.install(scratch)
from engine.compiler.nvidia.plan import lower_form
lowered = lower_form(json.loads(sys.argv[2]), scratch, {}, tunable=True)
(scratch / "plan.json").write_bytes(lowered.plan.encode())
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> LaunchPlan:
    scratch = tmp_path_factory.mktemp("plan")
    done = subprocess.run([sys.executable, "-P", "-c", LOWER, str(scratch), json.dumps(FORM)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_plan(scratch / "plan.json")


def test_what_steps_launch(plan: LaunchPlan) -> None:
    found = set()
    for bucket in buckets([GROUP], 4096):
        sizes = {"d0": bucket.tokens, "d1": bucket.sizes["S"] + 1, "d2": bucket.sizes["S"], "d3": 128}
        dims = sizes | {"Q": 1 if bucket.kind == "decode" else bucket.tokens}
        assert all(holds(guard, dims) for guard in plan.guards)
        launches = [launch for launch in plan.launches if all(holds(guard, dims) for guard in launch.when)]
        for launch in launches:
            x, y, z = (evaluate(size, dims) for size in launch.grid)
            assert min(x, y, z) >= 1
            assert max(y, z) < 2**16
        found.add((bucket.kind, *(plan.kernels[launch.kernel].function for launch in launches)))
    assert found == {
        ("decode", "latent_write_kernel", "latent_decode_kernel", "attention_combine_kernel"),
        ("decode", "latent_write_kernel", "latent_decode_kernel"),
        ("mixed", "latent_write_kernel", "latent_mixed_kernel"),
    }
    assert plan.output_shapes == [[HEADS, "d0", RANK]]
    assert all(kernel.stack_bytes == 0 for kernel in plan.kernels)


def test_what_can_be_tuned(plan: LaunchPlan) -> None:
    """Every candidate launches something at every size, over operands as large as it says."""
    setting = Setting(context=1024, block_size=32)
    problems = {problem.name: problem for problem in plan.problems}
    assert set(problems) == {f"latent attention {kind} 16 heads of 64 + 16" for kind in ("decode", "mixed")}
    for problem in problems.values():
        assert len(problem.candidates) >= 2
        for size in (2, 256):
            dims = setting.dimensions(problem, size)
            operands = {operand.name: evaluate(operand.bytes, dims) for operand in problem.operands}
            sequences, length = (size, 1024) if problem.kind == "decode" else (1, size)
            assert operands["cache"] == sequences * -(-length // 32) * 32 * (RANK + ROPE) * 2
            assert operands["q"] == evaluate(problem.out_bytes, dims) == size * HEADS * RANK * 2
            for candidate in problem.candidates:
                assert [launch for launch in candidate.launches if all(holds(guard, dims) for guard in launch.when)]

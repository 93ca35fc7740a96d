"""Fresh interpreters: what the runtime imports, and that the guard refuses the rest."""

import os
import subprocess
import sys

import pytest
from checkout import ROOT


def python(code: str) -> str:
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_options_and_worker_start_without_torch() -> None:
    code = "import sys, engine.options.runtime, engine.runtime.process.worker; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert python(code) == "False False"


def test_a_whole_run_imports_nothing_forbidden() -> None:
    code = """
import sys
from engine.runtime.process import import_guard
import_guard.install()
from engine.protocol import SamplingParams, Submit
from engine.runtime.core import EngineCore
from engine.options.runtime import RuntimeOptions
from fake_executor import FakeExecutor

core = EngineCore(FakeExecutor(num_blocks=32), RuntimeOptions())
for index in range(4):
    params = SamplingParams(max_tokens=9, temperature=index % 2, top_p=0.9, logprobs=index, repetition_penalty=1.1)
    core.submit(Submit(str(index), [1, 2, index], params))
while core.has_work():
    stats = core.step().stats
print([name for name in sys.modules if import_guard.is_forbidden(name)], stats.jit_compilations_total)
"""
    support = str(ROOT / "tests" / "support")
    assert python(f"import sys; sys.path.append({support!r})\n{code}") == "[] 0"


@pytest.mark.parametrize("module", ["torch", "torch._inductor.compile_fx", "triton", "transformers", "engine.compiler", "engine.models"])
def test_the_guard_refuses_and_counts(module: str) -> None:
    code = f"""
from engine.runtime.process import import_guard
import_guard.install()
import_guard.install()
try:
    import {module}
except ImportError as error:
    print(import_guard.refused(), error.name, "while serving" in str(error))
import_guard.uninstall()
"""
    assert python(code) == f"1 {module.partition('.')[0] if module.startswith('torch') else module} True"


def test_the_guard_does_not_pretend_when_it_comes_too_late() -> None:
    code = """
import sys, types
sys.modules["triton"] = types.ModuleType("triton")
from engine.runtime.process import import_guard
try:
    import_guard.install()
except ImportError as error:
    print(error.name)
"""
    assert python(code) == "triton"

"""The tests that need a GPU, without one: some of each kind, so that none of them is wrong on the day that there is a GPU."""

import os
import subprocess
import sys

import pytest
from checkout import ROOT

SOME = "faults or decode-1 or a_stream_is"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tests_for_a_gpu_run_over_the_stand_in() -> None:
    here = ROOT / "tests"
    command = [sys.executable, "-P", "-m", "pytest", "-q", str(here / "gpu"), "--stand-in", "-k", SOME, "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here.parent, env={**os.environ, "PYTHONSAFEPATH": "1"})
    assert done.returncode == 0, done.stdout[-4000:]
    assert "6 passed" in done.stdout, done.stdout[-400:]

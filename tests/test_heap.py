"""What the C library's heap keeps, in processes of their own."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's heap can be asked")

_THREADS_BLOCK = """
import ctypes, threading
from engine import heap
{prepare}
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_size_t
got = []
thread = threading.Thread(target=lambda: got.append(malloc(ctypes.c_size_t(1000))))
thread.start()
thread.join()
line = next(line for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]"))
start, end = (int(bound, 16) for bound in line.split()[0].split("-"))
print(start <= got[0] < end)
"""
_FREED = """
from engine import heap
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
blocks = [bytes(2000) for _ in range(40_000)]
last = bytes(2000)
del blocks
before = resident()
heap.give_back()
print(before - resident() > 50_000)
"""


def _run(script: str) -> str:
    return subprocess.run([sys.executable, "-P", "-c", script], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(("prepare", "shares"), [("", "False"), ("heap.use_one_arena()", "True")])
def test_threads_share_a_heap_only_when_asked(prepare: str, shares: str) -> None:
    assert _run(_THREADS_BLOCK.format(prepare=prepare)) == shares


def test_freed_memory_goes_back_to_the_system() -> None:
    assert _run(_FREED) == "True"

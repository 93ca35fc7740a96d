"""A GPU to compile for that is not there: the one place that touches private parts of torch and Triton.

`install()` makes this process answer Inductor's and Triton's questions about a Hopper GPU, so that
graphs on the device `cuda:0` can be traced on fake tensors and lowered to Triton kernels. Nothing
can be run, and nothing is asked of a driver. It is for processes that do nothing else: lower.py
starts them.
"""

import ctypes
import subprocess
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ...errors import BuildError
from ...kernels.native import torch_directory
from ...kernels.nvidia.launch import Device
from .releases import check_versions

HOPPER = Device(multiprocessors=132, shared_bytes=232_448, capability=90)
_PROPERTIES = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=HOPPER.multiprocessors,
    total_memory=141 * 10**9,
    warp_size=32,
    max_threads_per_block=1024,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65_536,
    shared_memory_per_block=49_152,
    shared_memory_per_block_optin=HOPPER.shared_bytes,
    L2_cache_size=60 * 2**20,
    gcnArchName="",
    is_integrated=0,
    is_multi_gpu_board=0,
    uuid="",
)


_NOTHING_RUNS = "something in Triton wants to run on the GPU that is only compiled for"


class _State:
    installed = False


def install(scratch: Path) -> None:
    """Give this process the device. scratch: where the guard is compiled. Calling it again does nothing.

    Raises BuildError where torch or Triton is missing or of a release that this was not written for.
    """
    if _State.installed:
        return
    check_versions()
    if not torch.backends.cuda.is_built():
        ctypes.CDLL(str(_compile_guard(scratch)))
    _answer_torch()
    _answer_triton()
    _State.installed = True


def _compile_guard(scratch: Path) -> Path:
    source, torch_root = Path(__file__).with_name("guard.cpp"), torch_directory()
    output = scratch / f"guard{sysconfig.get_config_var('SHLIB_SUFFIX')}"
    command = ["g++", "-O1", "-std=c++20", "-shared", "-fPIC", f"-isystem{torch_root / 'include'}", str(source)]
    done = subprocess.run([*command, f"-L{torch_root / 'lib'}", "-lc10", "-o", str(output)], capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"the device guard did not compile:\n{done.stderr[-1000:]}", hint="building needs g++ 12 or newer")
    return output


def _answer_torch() -> None:
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: _PROPERTIES,
        "get_device_capability": lambda device=None: (_PROPERTIES.major, _PROPERTIES.minor),
        "get_device_name": lambda device=None: _PROPERTIES.name,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.version.cuda = "13.0"
    setattr(FakeTensorMode, "avoid_device_init", True)  # noqa: B010


def _answer_triton() -> None:
    import triton
    from torch._inductor.runtime import triton_helpers
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    class CompileOnlyDriver(DriverBase):  # type: ignore[misc]
        """Knows its target, and nothing else."""

        def __init__(self) -> None:
            pass

        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            raise BuildError(_NOTHING_RUNS)

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", HOPPER.capability, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda:0")

        def get_benchmarker(self) -> Any:
            raise BuildError(_NOTHING_RUNS)

    triton.runtime.driver.set_active(CompileOnlyDriver())
    triton_helpers.set_driver_to_gpu = lambda: None

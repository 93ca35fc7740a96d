"""A Triton function with everything about a launch that its code depends on, to a cubin."""

import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy

from ...artifacts.graph import Parameter
from ...artifacts.launch_plan import PlanKernel
from ...errors import BuildError
from ...kernels.nvidia.launch import Launch, Size, Tensor
from .device import HOPPER

_POINTER_TYPES = {
    "float32": "*fp32",
    "bfloat16": "*bf16",
    "float16": "*fp16",
    "int32": "*i32",
    "int64": "*i64",
    "uint8": "*u8",
    "int8": "*i8",
    "float8_e4m3fn": "*fp8e4nv",
}
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int32": 4, "int64": 8, "uint8": 1, "int8": 1, "float8_e4m3fn": 1}
_PARAMETERS: dict[str, Parameter] = {"i32": "int32", "i64": "int64"}
_PTX_BYTES = {"pointer": 8, "int32": 4, "int64": 8, "float32": 4}
_ALIGNMENT = 16
"""Pointers that are multiples of this, and integers likewise, let Triton load 16 bytes at once."""
WARP = 32
MACHINE = "sm_90a"
"""With the instructions that only Hopper has: wgmma, and the copy engine's."""
HIDDEN_PARAMETERS: tuple[Parameter, ...] = ("pointer", "pointer")
"""Triton's own last parameters, null where a kernel wants none: memory for all blocks (descriptors of the copy engine), and profiling."""


def item_bytes(dtype: str) -> int:
    """Bytes of one element."""
    return _ITEM_BYTES[dtype]


@dataclass(frozen=True, kw_only=True)
class Specialization:
    """What decides a kernel's code beside its source. Of each runtime parameter, in order, its type and whether it is a multiple of 16."""

    function: Any
    parameters: tuple[tuple[str, str, bool], ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int
    max_registers: int | None


def specialize(launch: Launch) -> Specialization:
    """The specialization that a launch needs. Divisibility is claimed only where it follows from the sizes' form."""
    parameters = []
    for name in launch.function.arg_names:
        if name in launch.constants:
            continue
        value = launch.arguments[name]
        if isinstance(value, Tensor):
            aligned = is_multiple(value.offset * item_bytes(value.dtype), _ALIGNMENT)
            parameters.append((name, _POINTER_TYPES[value.dtype], aligned))
        else:
            parameters.append((name, launch.integer_types.get(name, "i32"), is_multiple(value, _ALIGNMENT)))
    unknown = set(launch.arguments) - {name for name, _, _ in parameters}
    if unknown:
        raise BuildError(f"{launch.function.__name__} has no parameter {', '.join(sorted(unknown))}")
    return Specialization(
        function=launch.function,
        parameters=tuple(parameters),
        constants=tuple(
            (name, int(value) if isinstance(value, sympy.Integer) else value) for name, value in sorted(launch.constants.items())
        ),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        max_registers=launch.max_registers,
    )


def is_multiple(size: Size, factor: int) -> bool:
    """Whether a size is a multiple for every value of its symbols, as far as its form shows."""
    terms = sympy.expand(sympy.sympify(size)).as_coefficients_dict()
    return all(coefficient.is_Integer and coefficient % factor == 0 for coefficient in terms.values())


def compile_kernel(wanted: Specialization) -> tuple[PlanKernel, bytes]:
    """Compile for Hopper. Returns what a plan says of the kernel, and its cubin.

    Raises BuildError where Triton does, or where the code wants something that launches do not provide.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = wanted.function.arg_names
    signature = {name: "constexpr" for name, _ in wanted.constants} | {name: type for name, type, _ in wanted.parameters}
    attributes = {(names.index(name),): [["tt.divisibility", _ALIGNMENT]] for name, _, aligned in wanted.parameters if aligned}
    source = ASTSource(
        fn=wanted.function,
        signature={name: signature[name] for name in names},
        constexprs={(names.index(name),): value for name, value in wanted.constants},
        attrs=attributes,
    )
    try:
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", HOPPER.capability, WARP),
            options={"num_warps": wanted.num_warps, "num_stages": wanted.num_stages, "maxnreg": wanted.max_registers},
        )
    except Exception as error:
        raise BuildError(f"the kernel {wanted.function.__name__} did not compile: {error}") from error
    return _described(wanted, compiled.metadata, compiled.asm["ptx"], compiled.asm["cubin"]), compiled.asm["cubin"]


def _described(wanted: Specialization, metadata: Any, ptx: str, cubin: bytes) -> PlanKernel:
    name = wanted.function.__name__
    if getattr(metadata, "profile_scratch_size", 0):
        raise BuildError(f"the kernel {name} wants memory for profiling, which launches do not provide")
    if metadata.shared > HOPPER.shared_bytes:
        raise BuildError(
            f"the kernel {name} wants {metadata.shared:,} bytes of shared memory, a multiprocessor has {HOPPER.shared_bytes:,}"
        )
    if f".target {MACHINE}" not in ptx:
        raise BuildError(f"the kernel {name} was not compiled for {MACHINE}")
    parameters = [*(_parameter(type) for _, type, _ in wanted.parameters), *HIDDEN_PARAMETERS]
    _check_parameters(name, parameters, ptx)
    registers, stack = _resources(cubin)
    return PlanKernel(
        cubin=hashlib.sha256(cubin).hexdigest(),
        function=metadata.name,
        threads=metadata.num_warps * WARP,
        shared_bytes=metadata.shared,
        parameters=parameters,
        registers=registers,
        stack_bytes=stack,
        scratch_bytes=getattr(metadata, "global_scratch_size", 0),
    )


def _parameter(type: str) -> Parameter:
    return "pointer" if type.startswith("*") else _PARAMETERS[type]


def _check_parameters(name: str, parameters: list[Parameter], ptx: str) -> None:
    """What Triton's launcher would pass is its own secret: compare with the code's real parameters."""
    entry = re.search(r"\.entry\s+\S+?\((.*?)\)", ptx, re.DOTALL)
    widths = [int(bits) // 8 for bits in re.findall(r"\.param\s+\.[a-z](\d+)", entry[1] if entry else "")]
    if widths != [_PTX_BYTES[parameter] for parameter in parameters]:
        raise BuildError(f"the kernel {name} takes parameters of {widths} bytes, expected {parameters}")


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread and bytes of stack, by cuobjdump."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise BuildError(f"cuobjdump says nothing of registers:\n{text[-500:]}")
    return int(found[1]), int(found[2])

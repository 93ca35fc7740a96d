"""Run launches with Triton's interpreter, and compile them for a GPU that is not there.

Whether Triton interprets is decided when its functions are decorated, that is at the import of
kernels. Launches are therefore interpreted in a process of their own (`Interpreter`), and compiled
in the one that imports this.
"""

import atexit
import functools
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import sympy
import torch

from engine.kernels.nvidia.choices import Problem, Range
from engine.kernels.nvidia.context import Context
from engine.kernels.nvidia.launch import Device, Launch, Size, Tensor

H200 = Device(multiprocessors=132, shared_bytes=232_448, capability=90)


def evaluate(size: Size, dims: Mapping[str, int]) -> int:
    """A size, with symbols by name."""
    if isinstance(size, int):
        return size
    value = sympy.sympify(size).subs({symbol: dims[symbol.name] for symbol in size.free_symbols})
    assert value.is_Integer, (size, value)
    return int(value)


def holds(launch: Launch, dims: Mapping[str, int]) -> bool:
    """Whether the launch is part of a step of these dimensions."""
    for condition in launch.when:
        value = evaluate(condition.value, dims)
        if value < condition.minimum or (condition.maximum is not None and value > condition.maximum):
            return False
    return True


def locate(tensor: Tensor, dims: Mapping[str, int], memory: Mapping[Hashable, torch.Tensor]) -> torch.Tensor:
    """The tensor in its buffer. An empty one has no place to be in and is a stranger."""
    dtype = getattr(torch, tensor.dtype)
    shape, strides = ([evaluate(size, dims) for size in sizes] for sizes in (tensor.shape, tensor.strides))
    storage = memory[tensor.buffer].untyped_storage()
    return torch.empty(0, dtype=dtype).set_(storage, evaluate(tensor.offset, dims), shape, strides)


def run_launches(launches: Iterable[Launch], dims: Mapping[str, int], memory: Mapping[Hashable, torch.Tensor]) -> int:
    """Run, in order, those launches whose conditions hold; returns how many did. Only where Triton interprets.

    memory: for each buffer a tensor over all of its bytes, of any dtype.
    """
    count = 0
    for launch in launches:
        if not holds(launch, dims):
            continue
        x, y, z = (evaluate(size, dims) for size in launch.grid)
        assert max(y, z) < 2**16, launch.grid
        arguments = {
            name: locate(value, dims, memory) if isinstance(value, Tensor) else evaluate(value, dims)
            for name, value in launch.arguments.items()
        }
        if x * y * z:
            launch.function[(x, y, z)](**arguments, **launch.constants)
            count += 1
    return count


def contiguous_strides(shape: Sequence[Size]) -> tuple[Size, ...]:
    strides: list[Size] = []
    step: Size = 1
    for size in reversed(shape):
        strides.insert(0, step)
        step = step * size
    return tuple(strides)


class Allocator:
    """Gives emitters their scratch and remembers it."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def __call__(self, dtype: str, shape: tuple[Size, ...]) -> Tensor:
        tensor = Tensor(buffer=("scratch", len(self.tensors)), dtype=dtype, shape=shape, strides=contiguous_strides(shape))
        self.tensors.append(tensor)
        return tensor


def poisoned(dtype: torch.dtype, elements: int) -> torch.Tensor:
    """Memory in which every byte is set: NaN in all float types, -1 or the largest in the others."""
    return torch.full((elements * dtype.itemsize,), 0xFF, dtype=torch.uint8).view(dtype)


@dataclass(frozen=True)
class Given:
    """An argument. `shape` names its symbolic sizes, e.g. ("T", 64); without it all are numbers."""

    tensor: torch.Tensor
    shape: tuple[int | str, ...] | None = None


def symbolic(shape: Iterable[int | str]) -> tuple[Size, ...]:
    return tuple(sympy.Symbol(size, integer=True, positive=True) if isinstance(size, str) else size for size in shape)


@dataclass(frozen=True, kw_only=True)
class Call:
    """An operator, its arguments (`Given`, numbers or None) and its result's shape and dtype, at `dims`.

    use: the candidate that does it, as far as it is made for that, by default as the policy says.
    """

    operator: str
    arguments: tuple[Any, ...]
    shape: tuple[int | str, ...]
    dtype: str
    dims: Mapping[str, int]
    device: Device = H200
    use: str | None = None

    def choose(self, problem: Problem) -> Sequence[Range]:
        candidate = problem.candidates.get(self.use or "")
        if candidate is None:
            return problem.policy
        before = [Range(candidate.least - 1, problem.policy[0].use)] if candidate.least > 1 else []
        after = [] if candidate.most is None else [Range(None, problem.policy[-1].use)]
        return [*before, Range(candidate.most, str(self.use)), *after]


def problems_of(call: Call) -> list[Problem]:
    """What of a call can be cut in several ways."""
    from engine.kernels.nvidia.emitters import emitter_of

    arguments, out = _described(call)
    problems: list[Problem] = []

    def note(problem: Problem) -> Sequence[Range]:
        problems.append(problem)
        return problem.policy

    emitter_of(call.operator)(arguments, out, Context(device=call.device, allocate=Allocator(), choose=note))
    return problems


def emit(call: Call) -> tuple[list[Launch], Tensor, list[Tensor]]:
    """The launches of a call; where its result goes (buffer "out"), and its scratch. Arguments lie in the buffers 0, 1, ..."""
    from engine.kernels.nvidia.emitters import emitter_of

    arguments, out = _described(call)
    allocator = Allocator()
    context = Context(device=call.device, allocate=allocator, choose=call.choose)
    launches = emitter_of(call.operator)(arguments, out, context)
    return launches, out, allocator.tensors


def _described(call: Call) -> tuple[tuple[Any, ...], Tensor]:
    def describe(index: int, argument: Any) -> Any:
        if not isinstance(argument, Given):
            return argument
        tensor = argument.tensor
        shape = symbolic(argument.shape or tensor.shape)
        assert [evaluate(size, call.dims) for size in shape] == list(tensor.shape), (argument.shape, tensor.shape)
        dtype = str(tensor.dtype).removeprefix("torch.")
        return Tensor(buffer=index, dtype=dtype, shape=shape, strides=tensor.stride(), offset=tensor.storage_offset())

    shape = symbolic(call.shape)
    out = Tensor(buffer="out", dtype=call.dtype, shape=shape, strides=contiguous_strides(shape))
    return tuple(describe(*pair) for pair in enumerate(call.arguments)), out


def execute(call: Call) -> torch.Tensor:
    """The call's result, out of memory full of NaN; arguments are changed as the operator changes them. Only where Triton interprets."""
    launches, out, scratch = emit(call)
    memory: dict[Hashable, torch.Tensor] = {index: given.tensor for index, given in enumerate(call.arguments) if isinstance(given, Given)}
    for tensor in (out, *scratch):
        elements = int(np.prod([evaluate(size, call.dims) for size in tensor.shape]))
        memory[tensor.buffer] = poisoned(getattr(torch, tensor.dtype), elements)
    assert run_launches(launches, call.dims, memory) > 0, "no launch is meant for this size"
    return locate(out, call.dims, memory)


class Interpreter:
    """A process in which Triton interprets, for as long as this is open."""

    def __enter__(self) -> Self:
        search = [str(Path(__file__).parent), *sys.path]
        environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(search), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "triton_launches"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, call: Call) -> tuple[torch.Tensor, list[Any]]:
        """The result, and the arguments as they are afterwards. The caller's own stay as they are."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(call, self._process.stdin)
        self._process.stdin.flush()
        answer = pickle.load(self._process.stdout)
        if isinstance(answer, str):
            raise AssertionError(answer)
        out, arguments = answer
        return out, arguments


@functools.cache
def interpreter() -> Interpreter:
    """One for the whole session: it takes seconds to start."""
    opened = Interpreter().__enter__()
    atexit.register(opened.__exit__)
    return opened


def worst_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest difference from the float64 `exact`; infinite if anything is NaN."""
    return float((actual.double() - exact).abs().nan_to_num(torch.inf).max()) if exact.numel() else 0.0


def teach_interpreter() -> None:
    """What kernels ask of Triton that its interpreter cannot do, or does wrongly."""
    _teach_bfloat16()
    _teach_libdevice()
    _teach_inline_ptx()


def _teach_bfloat16() -> None:
    """And FP8. The interpreter keeps both as integers and would multiply them as such; it rounds to them wrongly."""
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    small = {tl.bfloat16: (torch.bfloat16, np.uint16), tl.float8e4nv: (torch.float8_e4m3fn, np.uint8)}
    multiply, cast, convert = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl, InterpreterBuilder.create_fp_to_fp

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar not in small:
            return handle
        dtype, _ = small[handle.dtype.scalar]
        values = torch.from_numpy(np.ascontiguousarray(handle.data)).view(dtype).float().numpy()
        return TensorHandle(values.reshape(handle.data.shape), tl.float32)

    def narrowed(handle: Any, to: Any) -> Any:
        dtype, stored = small[to]
        values = torch.from_numpy(np.ascontiguousarray(handle.data)).to(dtype).view(torch.uint8).numpy().view(stored)
        return TensorHandle(values.reshape(handle.data.shape), to)

    def converted(source: Any, dtype: Any, otherwise: Any) -> Any:
        if source.dtype.scalar == tl.float32 and dtype.scalar in small:
            return narrowed(source, dtype.scalar)
        if source.dtype.scalar in small and dtype.scalar == tl.float32:
            return widened(source)
        return otherwise()

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, widened(a), widened(b), *rest)

    def cast_impl(self: Any, source: Any, dtype: Any) -> Any:
        return converted(source, dtype, lambda: cast(self, source, dtype))

    def create_fp_to_fp(self: Any, source: Any, dtype: Any, rounding: Any) -> Any:
        return converted(source, dtype, lambda: convert(self, source, dtype, rounding))

    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.cast_impl = cast_impl
    InterpreterBuilder.create_fp_to_fp = create_fp_to_fp


def _teach_libdevice() -> None:
    """What Inductor's kernels call of NVIDIA's library, which the interpreter does not have."""
    from triton import language as tl
    from triton.language.extra import libdevice
    from triton.runtime.interpreter import TensorHandle

    def elementwise(function: Any) -> Any:
        def call(x: Any) -> Any:
            values = function(torch.from_numpy(np.ascontiguousarray(x.handle.data))).numpy()
            return tl.tensor(TensorHandle(values, x.handle.dtype), x.type)

        return call

    for name in ("exp", "floor", "log1p", "rsqrt"):
        setattr(libdevice, name, elementwise(getattr(torch, name)))


def _teach_inline_ptx() -> None:
    """Of four elements at a time, in 32-bit registers."""
    import ptx
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    class Results(list[Any]):
        get_result = list.__getitem__

    def create_inline_asm(self: Any, text: str, constraints: str, values: Any, types: Any, is_pure: bool, pack: int) -> Any:
        assert pack == 4
        words = [np.ascontiguousarray(value.data).view(np.uint32) for value in values]
        given = [
            each[..., first :: value.data.itemsize]
            for value, each in zip(values, words, strict=True)
            for first in range(value.data.itemsize)
        ]
        registers = iter(ptx.run(text, constraints, given))
        results = Results()
        for type in types:
            size = type.scalar.primitive_bitwidth // 8
            data = np.stack([next(registers) for _ in range(size)], axis=-1).view(f"u{size}")
            results.append(TensorHandle(data.reshape(type.shape), type.scalar))
        return results

    InterpreterBuilder.create_inline_asm = create_inline_asm


def serve_calls() -> None:
    import traceback

    torch.set_num_threads(1)
    teach_interpreter()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            call = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            out = execute(call)
            answer: Any = out, [value.tensor if isinstance(value, Given) else value for value in call.arguments]
        except Exception:
            answer = traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What a kernel costs, as ptxas and Triton say, and its PTX."""

    name: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    ptx: str


TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int32": "i32", "uint8": "u8", "int8": "i8", "float8_e4m3fn": "fp8e4nv"}


def _divisible(size: Size) -> bool:
    return bool(sympy.sympify(size).is_integer and sympy.Mod(size, 16) == 0)


def _attributes(launch: Launch) -> dict[tuple[int], Any]:
    """Which parameters are known to be multiples of 16: numbers, and addresses in bytes (buffers lie well aligned)."""
    found = {}
    for name, value in launch.arguments.items():
        if _divisible(value.offset * getattr(torch, value.dtype).itemsize if isinstance(value, Tensor) else value):
            found[(launch.function.arg_names.index(name),)] = [["tt.divisibility", 16]]
    return found


def variant(launch: Launch) -> Hashable:
    """Equal for launches that one compiled kernel serves."""
    types = tuple(sorted((name, value.dtype if isinstance(value, Tensor) else "") for name, value in launch.arguments.items()))
    constants = tuple(sorted((name, str(value)) for name, value in launch.constants.items()))
    return launch.function.__name__, types, constants, str(_attributes(launch)), launch.num_warps, launch.num_stages, launch.max_registers


def compile_launch(launch: Launch) -> Compiled:
    """Compile for sm_90, without a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = dict.fromkeys(launch.function.arg_names, "constexpr")
    for name, value in launch.arguments.items():
        signature[name] = f"*{TYPES[value.dtype]}" if isinstance(value, Tensor) else launch.integer_types.get(name, "i32")
    source = ASTSource(launch.function, signature, dict(launch.constants), _attributes(launch))
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "maxnreg": launch.max_registers}
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    usage = _resource_usage(kernel.asm["cubin"])
    return Compiled(name=launch.function.__name__, shared_bytes=kernel.metadata.shared, ptx=kernel.asm["ptx"], **usage)


def _resource_usage(cubin: bytes) -> dict[str, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    (registers,), (stack,), (local,) = (re.findall(rf"{word}:(\d+)", text) for word in ("REG", "STACK", "LOCAL"))
    return {"registers": int(registers), "stack_bytes": int(stack) + int(local)}


if __name__ == "__main__":
    from triton_launches import serve_calls as serve  # under this name its classes are pickled

    serve()

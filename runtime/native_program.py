"""A program bound to its tensors, run by the kernel library's own loop: no Python within a step."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import Call, Manifest, Program
from ..errors import ArtifactError, Misfit, MismatchError
from ..kernels.native import load_code
from .batch import StepInputs
from .check_program import check_program
from .memory import Memory

_ABSENT = -1
"""The slot of an operator's tensor that a call leaves out."""

_pointer = ctypes.c_void_p
_pointers = ctypes.POINTER(_pointer)
_int32s = ctypes.POINTER(ctypes.c_int32)
_int64s = ctypes.POINTER(ctypes.c_int64)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "engine_program_new": (_pointer, [ctypes.c_int64, ctypes.c_int32]),
    "engine_program_delete": (None, [_pointer]),
    "engine_program_set": (
        ctypes.c_char_p,
        [_pointer, ctypes.c_int32, _pointer, ctypes.c_char_p, ctypes.c_int64, _int64s],
    ),
    "engine_program_open": (ctypes.c_char_p, [_pointer, ctypes.c_char_p]),
    "engine_program_add": (
        ctypes.c_char_p,
        [_pointer, ctypes.c_int32, ctypes.c_char_p, *(ctypes.c_int64, _int32s) * 3, ctypes.c_int64, ctypes.POINTER(ctypes.c_double)],
    ),
    "engine_program_input": (None, [_pointer, ctypes.c_char_p, ctypes.c_int64]),
    "engine_program_run": (ctypes.c_char_p, [_pointer, _pointer, _pointer]),
    "engine_program_take": (
        ctypes.c_char_p,
        [_pointer, ctypes.c_int32, ctypes.c_char_p, ctypes.c_int64, _pointers, _pointers, _int64s],
    ),
    "engine_tensor_delete": (None, [_pointer]),
    "engine_argmax": (None, [_pointer, ctypes.c_int64, _int32s, ctypes.c_int64, _int32s]),
}
_PASSED_AS: dict[Any, str] = {None: "v", ctypes.c_int32: "i4", ctypes.c_int64: "i8"}
"""How kernels/cpu/runtime_interface.h spells these types; all others are pointers, `p`."""


class _Owned:
    """A native tensor as numpy sees it; deleted with the last array over it."""

    def __init__(self, delete: Callable[[int], None], tensor: int, data: int, dtype: str, shape: tuple[int, ...]) -> None:
        self._delete, self._tensor = delete, tensor
        self.__array_interface__ = {"version": 3, "typestr": np.dtype(dtype).str, "shape": shape, "data": (data, False)}

    def __del__(self) -> None:
        self._delete(self._tensor)


class NativeProgram:
    """A program over numbered slots: its inputs first, then constants and values.

    constants: every `weight:` and `cache:` tensor, by name; they are kept alive. threads: how many
    compute a step. Raises ArtifactError for a program that uses what the artifact does not hold.
    A result stays where it is until the next run, unless it is taken. Not thread-safe; `run` releases the GIL.
    """

    def __init__(self, directory: Path, manifest: Manifest, program: Program, constants: Mapping[str, Memory], *, threads: int) -> None:
        self._c = _functions(directory / manifest.kernel_library)
        check_program(program, manifest.segments, constants)
        calls = program.calls
        names = [f"input:{info.name}" for info in program.inputs]
        names += dict.fromkeys(name for call in calls for name in (*call.inputs, *call.outputs) if name and not name.startswith("input:"))
        self._slots = {name: slot for slot, name in enumerate(names)} | {"": _ABSENT}
        self._program = self._c["engine_program_new"](len(names), threads)
        self._results = {name: self._slots[value] for name, value in program.results.items()}
        self._inputs = program.inputs
        for each in program.inputs:
            self._c["engine_program_input"](self._program, each.dtype.encode(), len(each.dims))
        self._constants: list[Memory] = []
        for name, slot in self._slots.items():
            if name.startswith(("weight:", "cache:")):
                self._set(slot, constants[name])
        segments = {info.key: number for number, info in enumerate(manifest.segments)}
        for info in manifest.segments:
            _check(self._c["engine_program_open"](self._program, bytes(directory / info.file)))
        for call in program.calls:
            self._add(call, segments)

    def run(self, inputs: StepInputs) -> None:
        """One run. Raises RuntimeError if a call fails."""
        data, sizes = inputs.table(self._inputs)
        self._raise(self._c["engine_program_run"](self._program, data, sizes))

    def take(self, name: str, dtype: str, dims: int) -> NDArray[Any]:
        """A result of the last run, the caller's to keep; once each. Raises RuntimeError for one of another type or shape."""
        result, data, sizes = _pointer(), _pointer(), (ctypes.c_int64 * dims)()
        taken = (ctypes.byref(result), ctypes.byref(data), sizes)
        self._raise(self._c["engine_program_take"](self._program, self._results[name], dtype.encode(), dims, *taken))
        assert result.value is not None
        assert data.value is not None
        return np.asarray(_Owned(self._c["engine_tensor_delete"], result.value, data.value, dtype, tuple(sizes)))

    @staticmethod
    def _raise(error: bytes | None) -> None:
        if error:
            raise RuntimeError(error.decode(errors="replace"))

    def argmax(self, logits: NDArray[np.float32], rows: Sequence[int]) -> list[int]:
        """For each of `rows` of `logits` [R, V] the index of the largest, the lowest of equals; -1 if that is infinite or one is NaN."""
        assert logits.flags.c_contiguous
        count = len(rows)
        found = (ctypes.c_int32 * count)()
        self._c["engine_argmax"](logits.ctypes.data, logits.shape[1], (ctypes.c_int32 * count)(*rows), count, found)
        return list(found)

    def __del__(self) -> None:
        if getattr(self, "_program", None):
            self._c["engine_program_delete"](self._program)

    def _set(self, slot: int, memory: Memory) -> None:
        self._constants.append(memory)
        sizes = (ctypes.c_int64 * len(memory.shape))(*memory.shape)
        address = memory.data.ctypes.data
        _check(self._c["engine_program_set"](self._program, slot, address, memory.dtype.encode(), len(memory.shape), sizes))

    def _add(self, call: Call, segments: Mapping[str, int]) -> None:
        arguments: list[Any] = [segments[call.target] if call.kind == "segment" else -1, call.target.encode()]
        for names in (call.inputs, call.outputs, call.frees):
            slots = [self._slots[name] for name in names]
            arguments += [len(slots), (ctypes.c_int32 * len(slots))(*slots)]
        arguments += [len(call.scalars), (ctypes.c_double * len(call.scalars))(*call.scalars)]
        _check(self._c["engine_program_add"](self._program, *arguments))


def _functions(library: Path) -> dict[str, Any]:
    loaded = load_code(library)
    _check_interface(loaded, library)
    functions = {}
    for name, (result, arguments) in _SIGNATURES.items():
        functions[name] = getattr(loaded, name)
        functions[name].restype, functions[name].argtypes = result, arguments
    return functions


def _check_interface(loaded: ctypes.CDLL, library: Path) -> None:
    """Raises MismatchError if the library's functions are not those that would be called (kernels/cpu/runtime_interface.h)."""
    there: dict[str, str] = {}
    if hasattr(loaded, "engine_runtime_interface"):
        loaded.engine_runtime_interface.restype = ctypes.c_char_p
        there = dict(line.split(": ") for line in loaded.engine_runtime_interface().decode().splitlines())
    wanted = {
        name: " ".join(_PASSED_AS.get(each, "p") for each in (result, *arguments)) for name, (result, arguments) in _SIGNATURES.items()
    }
    misfits = [
        Misfit(field=name, artifact=there.get(name, "none"), machine=types) for name, types in wanted.items() if there.get(name) != types
    ]
    if misfits:
        raise MismatchError(
            f"{library} was built by another version of Engine",
            misfits,
            other="this version",
            hint="build the artifact again with this version",
        )


def _check(error: bytes | None) -> None:
    if error:
        raise ArtifactError(
            f"the artifact's code cannot be loaded: {error.decode(errors='replace')}",
            hint="build the artifact again with the torch of this machine",
        )

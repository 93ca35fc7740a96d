"""A program bound to its tensors, run by the kernel library's own loop: no Python within a step."""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..artifacts import Call, Manifest
from ..errors import ArtifactError
from .batch import StepInputs

STEP_INPUTS = ("tokens", "positions", "query_start", "seq_lens", "block_table", "slots")

_pointer = ctypes.c_void_p
_int32s = ctypes.POINTER(ctypes.c_int32)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "engine_program_new": (_pointer, [ctypes.c_int64]),
    "engine_program_delete": (None, [_pointer]),
    "engine_program_set": (None, [_pointer, ctypes.c_int32, _pointer]),
    "engine_program_open": (ctypes.c_char_p, [_pointer, ctypes.c_char_p]),
    "engine_program_add": (
        ctypes.c_char_p,
        [_pointer, ctypes.c_int32, ctypes.c_char_p, *(ctypes.c_int64, _int32s) * 3, ctypes.c_int64, ctypes.POINTER(ctypes.c_double)],
    ),
    "engine_program_run": (
        ctypes.c_char_p,
        [_pointer, ctypes.POINTER(_pointer), *(ctypes.c_int64,) * 3, ctypes.c_int32, ctypes.POINTER(_pointer)],
    ),
    "engine_argmax": (None, [_pointer, ctypes.c_int64, _int32s, ctypes.c_int64, _int32s]),
}

_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.restype, _capsule_new.argtypes = ctypes.py_object, [_pointer, ctypes.c_char_p, _pointer]
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = _pointer, [ctypes.py_object, ctypes.c_char_p]


class NativeProgram:
    """A manifest's program over numbered slots: the step's inputs first, then constants and values.

    constants: every `weight:` and `kv:` tensor, by name; they are kept alive. Raises ArtifactError
    for a program that uses what the artifact does not hold. Not thread-safe; `run` releases the GIL.
    """

    def __init__(self, library: Path, directory: Path, manifest: Manifest, constants: Mapping[str, torch.Tensor]) -> None:
        self._c = _functions(library)
        calls = manifest.program.calls
        names = [f"input:{name}" for name in STEP_INPUTS]
        names += dict.fromkeys(name for call in calls for name in (*call.inputs, *call.outputs) if not name.startswith("input:"))
        self._slots = {name: slot for slot, name in enumerate(names)}
        self._program = self._c["engine_program_new"](len(names))
        self._wanted = self._slots[manifest.program.result]
        self._data = (_pointer * len(STEP_INPUTS))()
        self._result = _pointer()
        for name, slot in self._slots.items():
            if name.startswith(("weight:", "kv:")):
                self._set(slot, name, constants)
        segments = {info.key: number for number, info in enumerate(manifest.segments)}
        for info in manifest.segments:
            _check(self._c["engine_program_open"](self._program, bytes(directory / info.file)))
        for call in calls:
            self._add(call, segments)

    def run(self, inputs: StepInputs) -> torch.Tensor:
        """One step: logits [S, V] float32, the caller's to keep. Raises RuntimeError if a call fails."""
        data = self._data
        for index, name in enumerate(STEP_INPUTS):
            data[index] = getattr(inputs, name).data_ptr()
        sequences, width = inputs.block_table.shape
        error = self._c["engine_program_run"](
            self._program, data, inputs.tokens.shape[0], sequences, width, self._wanted, ctypes.byref(self._result)
        )
        if error:
            raise RuntimeError(error.decode(errors="replace"))
        # the function for a single tensor keeps a reference for ever
        logits: list[torch.Tensor] = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs([_capsule_new(self._result, None, None)])
        return logits[0]

    def argmax(self, logits: NDArray[np.float32], rows: Sequence[int]) -> list[int]:
        """As `StepExecutor.argmax`."""
        assert logits.flags.c_contiguous
        count = len(rows)
        found = (ctypes.c_int32 * count)()
        self._c["engine_argmax"](logits.ctypes.data, logits.shape[1], (ctypes.c_int32 * count)(*rows), count, found)
        return list(found)

    def __del__(self) -> None:
        if getattr(self, "_program", None):
            self._c["engine_program_delete"](self._program)

    def _set(self, slot: int, name: str, constants: Mapping[str, torch.Tensor]) -> None:
        if name not in constants:
            raise ArtifactError(f"the program uses {name}, which the artifact does not hold")
        capsule = torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(constants[name])
        self._c["engine_program_set"](self._program, slot, _capsule_pointer(capsule, None))

    def _add(self, call: Call, segments: Mapping[str, int]) -> None:
        if call.kind == "segment" and call.target not in segments:
            raise ArtifactError(f"the program calls segment {call.target}, which the artifact does not hold")
        arguments: list[Any] = [segments[call.target] if call.kind == "segment" else -1, call.target.encode()]
        for names in (call.inputs, call.outputs, call.frees):
            slots = [self._slots[name] for name in names]
            arguments += [len(slots), (ctypes.c_int32 * len(slots))(*slots)]
        arguments += [len(call.scalars), (ctypes.c_double * len(call.scalars))(*call.scalars)]
        _check(self._c["engine_program_add"](self._program, *arguments))


def _functions(library: Path) -> dict[str, Any]:
    loaded = ctypes.CDLL(str(library))
    functions = {}
    for name, (result, arguments) in _SIGNATURES.items():
        if not hasattr(loaded, name):
            raise ArtifactError(f"{library} was built by another version of Engine: it has no {name}", hint="build the artifact again")
        functions[name] = getattr(loaded, name)
        functions[name].restype, functions[name].argtypes = result, arguments
    return functions


def _check(error: bytes | None) -> None:
    if error:
        raise ArtifactError(
            f"the artifact's code cannot be loaded: {error.decode(errors='replace')}",
            hint="build the artifact again with the torch of this machine",
        )

"""What a process needs to run code for AMX: an emulator, for the processors that lack it."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from engine.artifacts.target import Target, this_machine_flags

TARGET = "cpu-x86-64-v4+amx_int8+avx512_vnni"
PLAIN_TARGET = "cpu-x86-64-v4+avx512_vnni"
"""The same without AMX, which this machine must be able to run: only what AMX adds is emulated."""
FLAGS = frozenset({"amx_tile", "amx_int8"})

_EMULATOR = Path(__file__).with_name("amx_emulator.c")


def is_native() -> bool:
    return this_machine_flags() >= FLAGS


def unusable() -> str | None:
    """Why nothing for AMX can be run here, if so."""
    if misfits := Target.parse(PLAIN_TARGET).misfits(this_machine_flags()):
        return f"this machine {misfits[0].machine}"
    probe = subprocess.run(["g++", "-mamx-tile", "-mamx-int8", "-E", "-x", "c++", os.devnull], capture_output=True, check=False)
    return "g++ does not know AMX" if probe.returncode else None


def compile_emulator(directory: Path) -> Path:
    library = directory / "amx_emulator.so"
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-ftls-model=initial-exec"]
    subprocess.run([*command, "-o", str(library), str(_EMULATOR)], check=True)
    return library


def environment(emulator: Path | None, **more: str) -> dict[str, str]:
    """A process's environment, with `more` in it. Where the processor has AMX, a preloaded emulator has nothing to do."""
    preload = {"LD_PRELOAD": str(emulator)} if emulator else {}
    return {**os.environ, **preload, **more}


def counted_products() -> Iterator[int | None]:
    """This process's tile products since the value before, or None where no emulator counts them."""
    process = ctypes.CDLL(None)
    if not hasattr(process, "amx_products"):
        while True:
            yield None
    process.amx_products.restype = ctypes.c_uint64
    before = 0
    while True:
        now = process.amx_products()
        yield now - before
        before = now

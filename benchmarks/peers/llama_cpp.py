"""llama.cpp's server, compiled for this machine from the source inside the sdist of llama-cpp-python."""

import sys
import tarfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from .environment import run
from .session import Room, Server
from .subject import Place, Subject

NAME = "llama.cpp"
_PACKAGE = "llama-cpp-python"
_TARGETS = ("llama-server", "llama-quantize")
_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}
_REQUANTIZED = ("Q4_0", "Q8_0", "F16", "BF16")
"""Made from the same file: the formats for which llama.cpp has its fastest kernels."""


def install(place: Place) -> Mapping[str, str]:
    folder = place.work / NAME
    sdist = _sdist(folder)
    source = folder / sdist.name.removesuffix(".tar.gz")
    if not source.is_dir():
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
    build = folder / "build"
    if not all((build / "bin" / name).is_file() for name in _TARGETS):
        options = [f"-D{name}={value}" for name, value in _OPTIONS.items()]
        run(["cmake", "-S", str(source / "vendor" / "llama.cpp"), "-B", str(build), *options])
        run(["cmake", "--build", str(build), "--parallel", str(place.threads), "--target", *_TARGETS])
    for kind in filter(place.wants, _REQUANTIZED):
        _requantize(place, kind)
    return {_PACKAGE: sdist.name.removesuffix(".tar.gz").rpartition("-")[2]}


def subjects(place: Place) -> list[Subject]:
    same = place.gguf.stem.rpartition(".")[2]
    files = {same: place.gguf} | {kind: _file(place, kind) for kind in _REQUANTIZED}
    return [
        Subject(
            peer=NAME,
            weights=kind,
            four_bits=kind.startswith("Q4"),
            same_file=file == place.gguf,
            setting="slots and context as the load needs",
            open=partial(_server, place, file),
        )
        for kind, file in files.items()
    ]


def _server(place: Place, model: Path, room: Room) -> Server:
    threads = str(place.threads)
    context = str(room.sequences * room.tokens)
    command = [str(place.work / NAME / "build" / "bin" / "llama-server"), "-m", str(model), "--host", "127.0.0.1", "--port", "{port}"]
    command += ["-t", threads, "-tb", threads, "-np", str(room.sequences), "-c", context, "--offline", "--no-ui", "--cache-ram", "0"]
    return Server(command=tuple(command))


def _sdist(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if not [*folder.glob("*.tar.gz")]:
        run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), _PACKAGE])
    (found,) = folder.glob("*.tar.gz")
    return found


def _file(place: Place, kind: str) -> Path:
    return place.work / NAME / f"{place.gguf.stem}-as-{kind}.gguf"


def _requantize(place: Place, kind: str) -> None:
    final = _file(place, kind)
    if not final.is_file():
        unfinished = final.with_suffix(".partial")
        quantize = place.work / NAME / "build" / "bin" / "llama-quantize"
        run([str(quantize), "--allow-requantize", str(place.gguf), str(unfinished), kind, str(place.threads)])
        unfinished.rename(final)

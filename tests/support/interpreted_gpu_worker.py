"""The real worker over the stand-in for the driver, an artifact's own kernels by Triton's interpreter. `command` starts it."""

import os
import sys
from pathlib import Path

_SUPPORT = str(Path(__file__).parent)


def command(dump: Path) -> tuple[str, ...]:
    """The worker for the artifact of a build with that --debug-dump; a worker's flags follow."""
    code = f"import sys; sys.path.append({_SUPPORT!r}); import interpreted_gpu_worker; interpreted_gpu_worker.main({str(dump)!r})"
    return sys.executable, "-P", "-c", code


def main(dump: str) -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    from fake_cuda import FakeCuda
    from interpreted_gpu import interpret
    from triton_launches import teach_interpreter

    from engine.runtime.cuda.driver import LIBRARY_VARIABLE
    from engine.runtime.process import import_guard, worker

    teach_interpreter()
    fake = FakeCuda()
    os.environ[LIBRARY_VARIABLE] = str(fake.path)
    import_guard.is_forbidden = lambda module: False  # a GPU interprets nothing
    interpret(fake, Path(sys.argv[sys.argv.index("--artifacts") + 1]), Path(dump))
    code = worker.main()
    fake.check()
    sys.stderr.flush()
    os._exit(code)  # as the worker itself does

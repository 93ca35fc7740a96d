"""What a process that compiles is like: what of the environment may reach it, and that it does not outlive its build.

torch, Triton and g++ read hundreds of variables that change the code they make and that no key
could name. So a process that compiles has only those that cannot, and the one that traces loses
torch's before torch is imported. Imports nothing of ours but errors, to be in time.
"""

import ctypes
import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import MutableMapping

from ..errors import UsageError

_PLAIN_DIRECTORIES = ("/tmp", "/var/tmp", "/dev/shm")
_SET_PARENT_DEATH_SIGNAL = 1
_HARMLESS = re.compile(r"PATH|HOME|USER|LOGNAME|SHELL|TERM|TZ|TMPDIR|TMP|TEMP|LANG|LANGUAGE|LC_\w+|LD_LIBRARY_PATH|VIRTUAL_ENV|PYTHON\w*")
"""Where programs and temporary files are, whose they are, and how messages read. Which g++ PATH leads to is in the keys by its version."""
_TORCHS = re.compile(
    r"(?!TORCH_LOGS|TORCH_HOME)(?:(?:PY)?TORCH\w*|_?TORCHINDUCTOR\w*|TRITON\w*|AOT\w+|FX_\w+|FAKE_\w+|PT2_\w+|TENSORIFY_\w+)"
)
_READ_WHILE_TRACING = re.compile(r"TORCH_?DYNAMO\w*|TORCH_COMPILE\w*|TORCH_FAKE\w*|FX_\w+|FAKE_\w+|TENSORIFY_\w+")


def enter_compiler_process(build: int) -> None:
    """Make this process one that only compiles: without any variable that could change code, and ending with the build that started it.

    Its temporary files lie where commands need no quotes, since compilers are given their paths without.
    build: its process. Raises UsageError if torch has read such a variable already.
    """
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)  # else it would wait for work for ever
    if os.getppid() != build:
        os._exit(1)  # it ended before we could ask
    removed = [name for name in os.environ if not _HARMLESS.fullmatch(name)]
    _remove(removed, os.environ)
    if (read := [name for name in removed if _TORCHS.fullmatch(name)]) and "torch._inductor.config" in sys.modules:
        raise UsageError(
            f"torch has read {', '.join(read)} before this compiler process could remove it", hint="import torch._inductor later"
        )
    if _wants_quotes(tempfile.gettempdir()) and (plain := next(filter(_is_writable, _PLAIN_DIRECTORIES), None)) is not None:
        os.environ["TMPDIR"] = tempfile.tempdir = plain


def _wants_quotes(path: str) -> bool:
    return shlex.quote(path) != path


def _is_writable(path: str) -> bool:
    return os.access(path, os.W_OK | os.X_OK)


def forget_torch_variables() -> None:
    """Remove from this process every variable that could change what torch makes, if torch has not been imported and read them yet."""
    if "torch" in sys.modules:
        return
    _remove([name for name in os.environ if _TORCHS.fullmatch(name)], os.environ)


def check_tracing() -> None:
    """Raises UsageError if a variable is set that changes what tracing gives: in a process that has torch already it cannot be undone."""
    if names := sorted(name for name in os.environ if _READ_WHILE_TRACING.fullmatch(name)):
        raise UsageError(
            f"{', '.join(names)} would change what is compiled, and no key of the store knows of it",
            hint="unset it before torch is imported, or use the command `engine build`, which does without",
        )


def _remove(names: list[str], environment: MutableMapping[str, str]) -> None:
    for name in names:
        del environment[name]

"""One segment to a launch plan and its cubins.

Runs in a process of its own (see ../lower.py), which becomes one with a compile-only device.
"""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artifacts.tuning import Choice

if TYPE_CHECKING:
    from .plan import LoweredForm

CUBIN_SUFFIX = ".cubin"
REPLAY = "replay.json"


def cubin_name(digest: str) -> str:
    """File of a cubin with that SHA-256."""
    return f"{digest[:32]}{CUBIN_SUFFIX}"


def compile_form(
    form_text: str, output: Path, sources: Path | None = None, choices: Mapping[str, Choice] | None = None, *, tunable: bool = False
) -> None:
    """Compile a canonical form into `output`, a launch plan, with its cubins beside it.

    sources: a directory that also gets the kernels that Inductor wrote, and what replaying the plan
    with Triton's interpreter takes (REPLAY). Raises BuildError, and whatever Inductor raises.
    """
    warnings.simplefilter("ignore", FutureWarning)  # torch's, about torch
    scratch = Path(tempfile.mkdtemp(dir=output.parent, prefix="inductor-"))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch / "inductor")
    os.environ["TRITON_CACHE_DIR"] = str(output.parent.parent / "triton")  # one for all segments of a build: many kernels are the same
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # paths of this machine do not belong into a cubin
    try:
        from . import device

        device.install(scratch)
        from .plan import lower_form  # asks for the device while it is imported

        lowered = lower_form(json.loads(form_text), scratch, choices or {}, tunable=tunable)
        output.write_bytes(lowered.plan.encode())
        for digest, cubin in lowered.cubins.items():
            output.with_name(cubin_name(digest)).write_bytes(cubin)
        if sources is not None:
            _write_sources(sources, lowered)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_sources(sources: Path, lowered: "LoweredForm") -> None:
    sources.mkdir(parents=True, exist_ok=True)
    for name, text in lowered.sources.items():
        (sources / f"{name}.py").write_text(text)
    (sources / REPLAY).write_text(json.dumps([_replayed(kernel, lowered.sources) for kernel in lowered.specializations], indent=1))


def _replayed(kernel: Any, island_sources: dict[str, str]) -> dict[str, Any]:
    """Where a kernel's function is (`is_here`: in a file beside this one), and the constants with which it was compiled."""
    module = kernel.function.fn.__module__
    return {
        "function": kernel.function.__name__,
        "module": module,
        "is_here": module in island_sources,
        "parameters": [parameter for parameter, _, _ in kernel.parameters],
        "dtypes": [type for _, type, _ in kernel.parameters],
        "constants": dict(kernel.constants),
    }

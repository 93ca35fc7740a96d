"""Virtual environments of peers: made once, from a package index, and never of CUDA packages."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INSTALL_LIMIT_S = 3600.0
_MARKER = "installed.json"
_SHOWN_LINES = 15


class PeerError(Exception):
    """A peer cannot be installed, started or measured. The others go on."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment in `folder` with the packages that `requirements` ask for.

    without: packages removed again, which the others can do without: built for another torch, they break its import.
    """

    folder: Path
    requirements: tuple[str, ...]
    without: tuple[str, ...] = ()

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def command(self, name: str) -> Path:
        """The program `name` that a package brought."""
        return self.folder / "bin" / name

    def install(self) -> None:
        """Make it, unless an earlier call with the same requirements finished. Raises PeerError."""
        if self._installed():
            return
        run([sys.executable, "-m", "venv", "--clear", str(self.folder)])
        self._refuse_cuda()
        run([str(self.python), "-m", "pip", "install", "--quiet", *self.requirements])
        if self.without:
            run([str(self.python), "-m", "pip", "uninstall", "--quiet", "--yes", *self.without])
        (self.folder / _MARKER).write_text(json.dumps(self.requirements))

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """The installed versions of `packages`. Raises PeerError if one is missing."""
        code = "import json, sys; from importlib.metadata import version; print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
        found: dict[str, str] = json.loads(run([str(self.python), "-c", code, *packages]))
        return found

    def _installed(self) -> bool:
        try:
            return bool(json.loads((self.folder / _MARKER).read_text()) == [*self.requirements])
        except (OSError, ValueError):
            return False

    def _refuse_cuda(self) -> None:
        report = self.folder / "plan.json"
        run([str(self.python), "-m", "pip", "install", "--quiet", "--dry-run", "--report", str(report), *self.requirements])
        if cuda := cuda_packages(json.loads(report.read_text())):
            raise PeerError(f"would install {', '.join(cuda)}; give pip an index with CPU builds of torch (PIP_EXTRA_INDEX_URL)")


def cuda_packages(plan: dict[str, Any]) -> list[str]:
    """The packages for NVIDIA's devices in a report of `pip install --dry-run`."""
    names = [str(item["metadata"]["name"]) for item in plan["install"]]
    return [name for name in names if name.lower().startswith("nvidia-")]


def run(command: Sequence[str], *, variables: Mapping[str, str] | None = None, limit_s: float = INSTALL_LIMIT_S) -> str:
    """The standard output of `command`. Raises PeerError with the last lines of what it said if it fails."""
    variables = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(variables or {})}
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"{Path(command[0]).name} took more than {limit_s:.0f} s") from error
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-_SHOWN_LINES:])
        raise PeerError(f"{' '.join(map(str, command))} exited with {done.returncode}:\n{said}")
    return done.stdout

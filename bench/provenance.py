"""What a measurement belongs to: machine, versions, commit, artifact, command line."""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from ..artifacts import Manifest, load_manifest, this_machine_flags
from ..cpus import usable_cpus
from ..errors import DeviceError
from ..runtime.kinds.choose import kind_of

_ROOT = Path(__file__).resolve().parent.parent
_ISA = ("avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")
PACKAGES = ("engine-llm", "torch", "numpy", "tokenizers", "uvloop", "httptools", "msgspec")


class ArtifactFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Which artifact. digest covers every byte of it (docs/integrity.md)."""

    directory: str
    model: str
    parameters: int
    weights: str
    target: str
    toolchain: dict[str, str]
    digest: str


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """cores: logical CPUs that this process may use. load_average: of the last minute, before the benchmark began.

    gpu: the GPU and its driver, if the artifact is for one and there is one.
    """

    date: str
    command: str
    cpu: str
    isa: list[str]
    cores: int
    memory_bytes: int
    kernel: str
    load_average: float
    python: str
    versions: dict[str, str]
    commit: str | None
    artifact: ArtifactFacts | None
    gpu: str | None = None


def _program() -> list[str]:
    """What was typed before the arguments: `engine`, or a program of benchmarks/."""
    program = Path(sys.argv[0]).resolve()
    if not program.is_relative_to(_ROOT / "benchmarks"):
        return ["engine"]
    return ["python", str((program.parent if program.name == "__main__.py" else program).relative_to(_ROOT))]


def provenance(artifacts: Path | None = None, packages: Iterable[str] = PACKAGES) -> Provenance:
    """The facts of now. packages: names whose versions matter; those that are not installed are left out."""
    manifest = load_manifest(artifacts) if artifacts else None
    return Provenance(
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=shlex.join([*_program(), *map(_without_place, sys.argv[1:])]),
        cpu=_cpu(),
        isa=[flag for flag in _ISA if flag in this_machine_flags()],
        cores=len(usable_cpus()),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        kernel=f"{platform.system()} {platform.release()}",
        load_average=os.getloadavg()[0],
        python=platform.python_version(),
        versions=_versions(packages),
        commit=_commit(_ROOT),
        artifact=_artifact(artifacts, manifest) if artifacts and manifest else None,
        gpu=_gpu() if manifest and kind_of(manifest).uses_gpu else None,
    )


def _without_place(argument: str) -> str:
    """A path by its last part: where things lie on this machine is nobody's business."""
    path = Path(argument)
    return path.name if path.is_absolute() else argument


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _gpu() -> str | None:
    from ..runtime.cuda.device import Device
    from ..runtime.cuda.driver import Driver, version_text

    try:
        device = Device(Driver())
    except DeviceError:
        return None
    return f"{device.name}, driver for CUDA {version_text(device.driver.version)}"


def _versions(packages: Iterable[str]) -> dict[str, str]:
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _commit(root: Path) -> str | None:
    """The commit of a checkout, with -dirty if it differs; None for an installed package."""
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _artifact(directory: Path, manifest: Manifest) -> ArtifactFacts:
    return ArtifactFacts(
        directory=directory.resolve().name,
        model=manifest.model.name,
        parameters=manifest.model.parameters,
        weights=f"{manifest.model.source_format}, quantize {manifest.model.quantize}",
        target=manifest.target,
        toolchain=msgspec.structs.asdict(manifest.toolchain),
        digest=manifest.digest,
    )

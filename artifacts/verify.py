"""Is this artifact whole, and does it fit this machine?"""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import ArtifactError, Misfit, MismatchError
from .manifest import FileInfo, Manifest
from .nvidia_target import NvidiaTarget
from .target import this_machine_flags
from .targets import parse_target

_WORTH_A_THREAD = 256 << 10
"""Bytes of a file below which handing it to another thread takes longer than reading it: artifacts for GPUs have hundreds of them."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def torch_release(text: str) -> str:
    """`2.13.0+cpu` -> `2.13.0`: the CPU and CUDA builds of a release share their C interface."""
    return text.partition("+")[0]


def check_machine(manifest: Manifest, *, flags: Iterable[str] | None = None, torch_version: str | None = None) -> None:
    """Refuse an artifact made for another target or another torch.

    flags, torch_version: the machine's, detected when not given. Raises MismatchError with
    one row per field that differs.
    """
    target = parse_target(manifest.target)
    if isinstance(target, NvidiaTarget):
        return  # its runtime asks the driver what GPU there is, and needs no torch
    misfits = target.misfits(this_machine_flags() if flags is None else flags)
    have = torch_release(torch_version or _installed_torch())
    if have != torch_release(manifest.toolchain.torch):
        misfits.append(Misfit(field="torch", artifact=torch_release(manifest.toolchain.torch), machine=have))
    if misfits:
        raise MismatchError(
            "this artifact was built for another machine",
            misfits,
            hint="build it again here, or with the --target and torch of this machine",
        )


def _installed_torch() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "not installed"


def check_sizes(directory: Path, manifest: Manifest) -> None:
    """Every listed file exists and has its size. Cheap: no file is read."""
    _check_sizes(directory, manifest.files)


def _check_sizes(directory: Path, files: dict[str, FileInfo]) -> None:
    for name, info in files.items():
        path = directory / name
        try:
            size = path.stat().st_size
        except OSError:
            raise ArtifactError(f"{path} is missing", hint="the artifact was copied incompletely; copy or build it again") from None
        if size != info.bytes:
            raise ArtifactError(
                f"{path} has {size:,} bytes, the manifest says {info.bytes:,}",
                hint="the artifact was copied incompletely; copy or build it again",
            )


def check_servable(manifest: Manifest) -> None:
    """Refuse an artifact that is code alone."""
    if not manifest.has_weights:
        raise ArtifactError(
            f"{manifest.model.name} was built with --weights none: the artifact holds no weights",
            hint="add those of a checkpoint, which compiles nothing: engine pack DIR --weights-from CHECKPOINT -o NEW",
        )


def check_files(directory: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Sizes and digests of some files, whatever else is there. Raises ArtifactError at the first that differs."""
    files = {name: manifest.files[name] for name in sorted(names)}
    _check_sizes(directory, files)
    _check_digests(directory, files)


def check_code(directory: Path, manifest: Manifest) -> None:
    """Sizes of all files, and digests of everything that will be executed."""
    check_sizes(directory, manifest)
    _check_digests(directory, {name: manifest.files[name] for name in sorted(manifest.code_files)})


def verify(directory: Path, manifest: Manifest, on_file: Callable[[str, int], None] | None = None) -> None:
    """Sizes and digests of every file, weights included. Raises ArtifactError at the first that differs.

    on_file(name, bytes) is called after each file that holds.
    """
    check_sizes(directory, manifest)
    _check_digests(directory, manifest.files, on_file)


def _check_digests(directory: Path, files: dict[str, FileInfo], on_file: Callable[[str, int], None] | None = None) -> None:
    with ThreadPoolExecutor() as pool:  # hashlib releases the GIL
        large = {name: pool.submit(file_digest, directory / name) for name, info in files.items() if info.bytes >= _WORTH_A_THREAD}
        for name, info in files.items():
            digest = large[name].result() if name in large else file_digest(directory / name)
            if digest != info.sha256:
                raise ArtifactError(
                    f"{directory / name} is damaged: SHA-256 {digest[:16]}…, the manifest says {info.sha256[:16]}…",
                    hint="never serve this copy; build or copy the artifact again",
                )
            if on_file:
                on_file(name, info.bytes)

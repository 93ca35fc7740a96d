"""Is this artifact whole, and does it fit this machine?"""

from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import ArtifactError, Misfit, MismatchError
from .files import Fault, faults_in, file_digest, refusal, unlisted
from .manifest import MANIFEST_NAME, SIGNATURE_NAME, TEXT_FOLDER, Manifest
from .nvidia_target import NvidiaTarget
from .target import this_machine_flags
from .targets import parse_target


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


def check_servable(manifest: Manifest) -> None:
    """Refuse an artifact that is code alone."""
    if not manifest.has_weights:
        raise ArtifactError(
            f"{manifest.model.name} was built with --weights none: the artifact holds no weights", hint="build it from a whole checkpoint"
        )


def check_code(directory: Path, manifest: Manifest) -> None:
    """Sizes of all files, and digests of everything that will be executed. Raises ArtifactError with all that differs."""
    _refuse(directory, faults_in(directory, manifest.files, manifest.code_files))


def check_text(directory: Path, manifest: Manifest) -> None:
    """Sizes of all files, and digests of the tokenizer's; a file among those that is not listed would be read all the same.

    Raises ArtifactError with all that differs.
    """
    _refuse(directory, faults_in(directory, manifest.files, manifest.text_files))
    others = unlisted(directory, manifest.files)
    _refuse(directory, [fault for fault in others if f"{fault.name}/".startswith(TEXT_FOLDER)])


def check_weights(directory: Path, manifest: Manifest, *, digest: Callable[[Path], str] = file_digest, threads: int | None = None) -> None:
    """Sizes and digests of the weights. Raises ArtifactError with all that differs. digest, threads: how, see `faults_in`."""
    files = {name: manifest.files[name] for name in manifest.weight_files}
    _refuse(directory, faults_in(directory, files, files, digest=digest, threads=threads))


def verify(directory: Path, manifest: Manifest, on_file: Callable[[str, int], None] | None = None) -> None:
    """Sizes and digests of every file, weights included, and that there are no others. Raises ArtifactError with all that differs.

    on_file(name, bytes) is called after each file that holds.
    """
    faults = faults_in(directory, manifest.files, manifest.files, on_file)
    _refuse(directory, faults + unlisted(directory, {*manifest.files, MANIFEST_NAME, SIGNATURE_NAME}))


def _refuse(directory: Path, faults: list[Fault]) -> None:
    if faults:
        raise refusal(directory, faults)

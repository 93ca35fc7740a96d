"""tools/install.py against a package index of our own making: CUDA must not come onto a CPU machine."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "install.py"


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def empty_venv(install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment for the script to work on; pip sees only wheels in tmp_path/wheels, and there is no GPU."""
    venv, wheels = tmp_path / "venv", tmp_path / "wheels"
    wheels.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, capture_output=True)
    for name, value in (("PIP_CONFIG_FILE", "/dev/null"), ("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(wheels))):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install, "VENV", venv)
    monkeypatch.setattr(install, "PYTHON", venv / "bin" / "python")
    return wheels


def add_wheel(wheels: Path, name: str, version: str, requires: str | None = None) -> None:
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (f"Requires-Dist: {requires}\n" if requires else "")
    with zipfile.ZipFile(wheels / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_refuses_cuda_packages_without_a_gpu(install: ModuleType, empty_venv: Path) -> None:
    add_wheel(empty_venv, "torch", install.TORCH, requires="nvidia-cublas")
    add_wheel(empty_venv, "nvidia_cublas", "13.0")
    with pytest.raises(SystemExit, match=r"no NVIDIA GPU.*nvidia-cublas(?s:.*)hint: set TORCH_INDEX="):
        install.install_torch()
    assert install.installed_torch() is None


def test_installs_a_cpu_build_once(install: ModuleType, empty_venv: Path, capfd: pytest.CaptureFixture[str]) -> None:
    add_wheel(empty_venv, "torch", f"{install.TORCH}+cpu")
    install.install_torch()
    assert install.installed_torch() == f"{install.TORCH}+cpu"
    capfd.readouterr()
    install.install_torch()
    assert capfd.readouterr().out == f"torch {install.TORCH}+cpu is there\n"


def test_refuses_another_python(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11, 3\.12 or 3\.13.*is 3\.10\.4(?s:.*)hint: make PYTHON="):
        install.check_tools()


def test_refuses_to_go_on_without_a_compiler(install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"no g\+\+ on PATH(?s:.*)hint: install GCC"):
        install.check_tools()

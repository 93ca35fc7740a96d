"""Make `.venv` and install Engine into it, editable. Standard library only; run by the Makefile.

torch comes first and by itself: on a machine without an NVIDIA GPU the default index may offer
a build that drags in gigabytes of CUDA libraries, so what pip would install is looked at before
anything is downloaded.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
TORCH = "2.13.0"
ADMITTED_TORCH = ((2, 11), (2, 14))
CUDA_PREFIXES = ("nvidia-", "cuda-", "triton")


def fail(message: str, hint: str) -> NoReturn:
    sys.exit(f"error: {message}\nhint: {hint}")


def check_tools() -> None:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        found = ".".join(map(str, sys.version_info[:3]))
        fail(f"Engine needs Python 3.11, 3.12 or 3.13; this one ({sys.executable}) is {found}", "make PYTHON=python3.12 ...")
    if shutil.which("g++") is None:
        fail("no g++ on PATH: `engine build` compiles native code with it", "install GCC 12 or newer (Debian, Ubuntu: apt install g++)")


def make_venv() -> None:
    if PYTHON.exists():
        return
    done = subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False)
    if done.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        fail("could not make .venv", "the module venv may be a package of its own (Debian, Ubuntu: apt install python3-venv)")


def pip(*arguments: str) -> None:
    done = subprocess.run([str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def installed_torch() -> str | None:
    """The version of the torch in .venv if it is one that Engine admits."""
    query = "from importlib.metadata import version; print(version('torch'))"
    done = subprocess.run([str(PYTHON), "-c", query], capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    version = done.stdout.strip()
    series = tuple(int(part) for part in version.split(".")[:2])
    low, high = ADMITTED_TORCH
    return version if low <= series < high else None


def planned_packages(arguments: list[str]) -> list[str]:
    """Names of what `pip install` with these arguments would install."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "--quiet", "--report", "-", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        fail(f"pip finds no torch {TORCH}", "set TORCH_INDEX=... to a package index that has it")
    return [str(item["metadata"]["name"]).lower().replace("_", "-") for item in json.loads(done.stdout)["install"]]


def install_torch() -> None:
    if (version := installed_torch()) is not None:
        print(f"torch {version} is there")
        return
    index = os.environ.get("TORCH_INDEX")
    arguments = [f"torch=={TORCH}", *(["--index-url", index] if index else [])]
    if shutil.which("nvidia-smi") is None:
        cuda = [name for name in planned_packages(arguments) if name.startswith(CUDA_PREFIXES)]
        if cuda:
            fail(
                f"this machine has no NVIDIA GPU, and pip would install torch with {len(cuda)} CUDA packages ({', '.join(cuda[:3])}, ...)",
                "set TORCH_INDEX=... to an index of CPU builds of torch (torch's own site names it under 'Get started')",
            )
    pip("install", *arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="build", help="extras of pyproject.toml to install, separated by commas")
    extras = parser.parse_args().extras
    check_tools()
    make_venv()
    install_torch()
    pip("install", "--quiet", "--editable", f".[{extras}]")


if __name__ == "__main__":
    main()

"""The rules of the layout: what is a package, what a wheel holds, where tests live, what the map names."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

from checkout import ROOT, our_files

NOT_SHIPPED = {"benchmarks", "docs", "tests", "tools"}
DATA_SUFFIXES = {".cpp", ".h", ".html"}


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def top_folders() -> set[str]:
    folders = {Path(file).parts[0] for file in our_files() if "/" in file}
    return {folder for folder in folders if not folder.startswith(".")}


def shipped_files() -> set[str]:
    """Paths, relative to the root, of every file in the package's folders, and of its root modules."""
    in_folders = {file for file in our_files() if Path(file).parts[0] in top_folders() - NOT_SHIPPED}
    return in_folders | {file for file in our_files() if "/" not in file and file.endswith(".py")} | {"py.typed"}


def test_packages_are_the_folders_with_python_in_them() -> None:
    folders = {Path(file).parent for file in shipped_files() if file.endswith(".py")}
    expected = {".".join(["engine", *folder.parts]) for folder in folders}
    listed = pyproject()["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(expected)
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()] == []


def test_package_folders_hold_only_python_native_sources_and_the_page() -> None:
    strangers = [file for file in shipped_files() if Path(file).suffix not in {".py", *DATA_SUFFIXES} and file != "py.typed"]
    assert strangers == []


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(f"engine/{file}" for file in shipped_files())


def test_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    run = [sys.executable, "-P", "-c", "import engine; print(engine.__file__); from engine.cli import main; main(['--version'])"]
    done = subprocess.run(run, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(tmp_path / "engine" / "__init__.py"), "engine 0.1.0"]


def test_tools_find_the_package_by_its_name() -> None:
    link = ROOT / ".dev" / "engine"
    assert link.is_symlink()
    assert os.readlink(link) == ".."


def test_pytest_takes_nothing_from_the_root() -> None:
    options = pyproject()["tool"]["pytest"]["ini_options"]
    assert "--import-mode=importlib" in options["addopts"]
    assert not (ROOT / "conftest.py").exists()
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_test_files_are_tests_and_the_rest_is_support() -> None:
    for path in (ROOT / file for file in our_files() if file.startswith("tests/") and file.endswith(".py")):
        relative = path.relative_to(ROOT / "tests")
        assert path.name == "conftest.py" or (relative.parts[0] == "support") != path.name.startswith("test_"), path


def test_every_package_has_a_layering_contract() -> None:
    contracts = pyproject()["tool"]["importlinter"]["contracts"]
    sources = {module.removeprefix("engine.") for contract in contracts for module in contract.get("source_modules", ())}
    assert top_folders() - NOT_SHIPPED <= sources


def test_the_map_names_every_folder() -> None:
    text = (ROOT / "docs" / "map.md").read_text()
    packages = {str(Path(file).parent) for file in shipped_files() if file.endswith(".py") and "/" in file}
    assert [folder for folder in sorted(top_folders() | packages) if f"`{folder}/`" not in text] == []

"""What a fresh interpreter has imported after importing us, and who may name which package at all."""

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
from checkout import ROOT

COMPILES = ("torch._dynamo", "torch._inductor", "triton", "transformers", "engine.compiler", "engine.passes", "engine.models")


def imported_by(code: str) -> set[str]:
    """Names of all modules that a fresh interpreter has after running `code`."""
    report = "\nimport sys; print('\\n'.join(sys.modules), file=sys.__stdout__)"
    done = subprocess.run([sys.executable, "-P", "-c", code + report], cwd="/", capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n"))


def modules_of(package: str) -> list[str]:
    path = ROOT.joinpath(*package.split(".")[1:])
    return [package, *(info.name for info in pkgutil.walk_packages([str(path)], f"{package}."))]


def forbidden(names: set[str], prefixes: tuple[str, ...]) -> list[str]:
    return sorted(name for name in names if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes))


def test_importing_engine_is_light() -> None:
    assert forbidden(imported_by("import engine"), ("torch", "numpy", "rich", *COMPILES)) == []


def test_the_server_never_imports_torch() -> None:
    names = imported_by("\n".join(f"import {name}" for name in modules_of("engine.server")))
    assert forbidden(names, ("torch", "engine.runtime", "engine.kernels", *COMPILES)) == []


def test_the_runtime_never_imports_torch_or_a_compiler() -> None:
    names = imported_by("\n".join(f"import {name}" for name in modules_of("engine.runtime")))
    assert forbidden(names, ("torch", *COMPILES)) == []


def test_reading_artifacts_needs_no_torch() -> None:
    assert forbidden(imported_by("\n".join(f"import {name}" for name in modules_of("engine.artifacts"))), ("torch", *COMPILES)) == []


def test_the_cache_needs_no_torch() -> None:
    code = "from engine.cli import main; main(['cache', 'stats', '--store', '/nowhere'])"
    assert forbidden(imported_by(code), ("torch", "numpy", "engine.runtime", "engine.server", *COMPILES)) == []


@pytest.mark.parametrize(
    "command", ["build", "pack", "serve", "generate", "chat", "inspect", "verify", "plan", "push", "pull", "cache", "tune"]
)
def test_help_waits_for_nothing(command: str) -> None:
    code = "import contextlib, io\nfrom engine.cli import main\n"
    code += f"with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main([{command!r}, '--help'])"
    found = forbidden(imported_by(code), ("torch", "numpy", "rich", "fastapi", "starlette", "uvicorn", *COMPILES))
    assert found == (["engine.compiler", "engine.compiler.options"] if command in ("build", "pack", "verify") else [])


def test_importing_kernels_registers_nothing() -> None:
    """The repository root on sys.path must not make our `kernels` act as somebody else's."""
    assert forbidden(imported_by("import engine.kernels"), ("torch",)) == []


def imports_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_only_the_compiler_names_torchs_compilers() -> None:
    """import-linter sees `torch` as one thing; this looks at its parts."""
    parts = ("torch._dynamo", "torch._inductor", "torch._functorch", "torch.fx", "torch.export")
    allowed = {"compiler": parts, "passes": ("torch.fx",)}
    for folder in ("artifacts", "kernels", "models", "passes", "runtime", "server"):
        for path in (ROOT / folder).rglob("*.py"):
            found = forbidden(set(imports_in(path)), parts)
            assert [name for name in found if not name.startswith(allowed.get(folder, ()))] == [], path


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Nor for its annotations, nor in a function."""
    graph = grimp.build_graph("engine", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert list(TopologicalSorter(imports).static_order())

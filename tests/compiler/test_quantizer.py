"""What quantizes at a build: compiled once, and to the bytes of its specification."""

from pathlib import Path

import pytest
import torch

from engine.artifacts import this_machine_flags
from engine.artifacts.store.store import Store
from engine.artifacts.target import CPU_LEVELS
from engine.compiler import quantizer
from engine.compiler.quantizer import NativeFit, best_fit, quantizer_identity
from engine.compiler.sources import PACKAGE
from engine.errors import BuildError
from engine.kernels import library
from engine.kernels.linear.quantize import fit


@pytest.fixture(scope="module")
def native(store: Path) -> NativeFit:
    found, why_slow = best_fit(Store(store))
    assert isinstance(found, NativeFit), why_slow
    return found


@pytest.mark.parametrize("bits", [4, 5, 6])
@pytest.mark.parametrize("rows", [1, 16, 77])
def test_the_library_gives_the_bytes_of_the_specification(native: NativeFit, bits: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 448, generator=generator) * torch.rand(rows, 1, generator=generator) * 0.1
    x[0, :64] = 0
    x[-1, 64:128] = -1e-9
    x[rows // 2] *= 1e-6
    x[rows // 3, 100] = 9.0
    importance = torch.rand(448, generator=generator)
    importance[128:192] = 0
    assert torch.equal(native(x, importance, bits), fit(x, importance, bits))


@pytest.mark.parametrize("flags", [("-march=x86-64",), ("-march=x86-64-v4",)])
def test_the_width_of_vectors_changes_no_byte(native: NativeFit, flags: tuple[str, ...], tmp_path: Path) -> None:
    if flags == ("-march=x86-64-v4",) and not this_machine_flags() >= set(CPU_LEVELS["x86-64-v4"]):
        pytest.skip("this machine has no AVX-512")
    library.compile_sources([PACKAGE / quantizer.SOURCE], flags, tmp_path / "other.so")
    x, importance = torch.randn(33, 320), torch.rand(320)
    for bits in (4, 6):
        assert torch.equal(NativeFit((tmp_path / "other.so").read_bytes())(x, importance, bits), native(x, importance, bits))


def test_it_is_compiled_once(store: Path, monkeypatch: pytest.MonkeyPatch, native: NativeFit) -> None:
    assert Store(store).find(quantizer_identity()) is not None
    monkeypatch.setattr(library, "compile_sources", None)
    assert isinstance(best_fit(Store(store))[0], NativeFit)


def test_without_a_compiler_the_specification_does_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing() -> None:
        raise BuildError("g++ is not installed", hint="install it")

    monkeypatch.setattr(quantizer, "versions", missing)
    assert best_fit(Store(tmp_path / "store")) == (fit, "in PyTorch, slowly: g++ is not installed")


def test_a_machine_without_the_instructions_does_it_by_the_specification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(quantizer, "this_machine_flags", lambda: frozenset({"sse2"}))
    assert best_fit(Store(tmp_path / "store")) == (fit, "in PyTorch, slowly: this machine is no x86-64-v3")

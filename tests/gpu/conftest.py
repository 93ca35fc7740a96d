"""What the tests on a GPU share: an artifact built on the spot, and the executor that runs it.

With `--stand-in` the same tests run without a GPU: the real runtime over the stand-in driver, every
kernel by Triton's interpreter, on a model that is small enough for it. So what is wrong in a test is
found before there is a GPU. What only a GPU can do is skipped then.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gpu_artifacts import INTERPRET, KV_MEMORY, SHAPE, SMALL_SHAPE, Built, build

from engine.artifacts import load_manifest
from engine.errors import DeviceError
from engine.runtime.cuda.device import Device
from engine.runtime.cuda.driver import LIBRARY_VARIABLE, Driver
from engine.runtime.cuda.executor import CudaExecutor


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a GPU; and a machine with one has its own versions of torch, whose warnings are none of ours."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def stand_in(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether a GPU is stood in for."""
    wanted = bool(request.config.getoption("--stand-in"))
    if not wanted:
        yield False
        return
    assert "triton" not in sys.modules, "whether Triton interprets is decided when it is imported: run this folder alone"
    from fake_cuda import library_path

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(INTERPRET, "1")
        patch.setenv(LIBRARY_VARIABLE, str(library_path()))
        yield True


@pytest.fixture(scope="session")
def gpu(stand_in: bool) -> str:
    """The GPU's name; skips where there is none, or none that the artifacts are for."""
    try:
        device = Device(Driver())
    except DeviceError as error:
        pytest.skip(error.message)
    if device.capability != 90:
        pytest.skip(f"the artifacts are for sm90, and {device.name} is sm{device.capability}")
    return device.name


@pytest.fixture(scope="session")
def real_gpu(stand_in: bool, gpu: str) -> str:
    """As `gpu`, but nothing stands in for it."""
    if stand_in:
        pytest.skip("only a GPU can do this")
    return gpu


@pytest.fixture(scope="session")
def checkpoint(stand_in: bool, gpu: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from random_checkpoints import write_random_checkpoint

    shape = SMALL_SHAPE if stand_in else SHAPE
    return write_random_checkpoint("llama", tmp_path_factory.mktemp("gpu-model") / "model", dtype=torch.bfloat16, **shape)


@pytest.fixture(scope="session")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(checkpoint, tmp_path_factory.mktemp("gpu-bf16"))


@pytest.fixture
def on_device(stand_in: bool) -> Iterator[Callable[[Built], None]]:
    """Call it before an artifact is loaded: tells the stand-in how to compute. At the end nothing may be alive or used wrongly."""
    if not stand_in:
        yield lambda built: None
        return
    from fake_cuda import FakeCuda
    from interpreted_gpu import interpret
    from triton_launches import teach_interpreter

    teach_interpreter()
    fake = FakeCuda()
    yield lambda built: interpret(fake, built.artifact, built.dump)
    fake.check()
    assert fake.alive() == {}


@pytest.fixture
def load(on_device: Callable[[Built], None]) -> Iterator[Callable[..., CudaExecutor]]:
    """Loads an artifact, and closes what has been loaded at the end."""
    loaded: list[CudaExecutor] = []

    def load(built: Built, *, max_num_seqs: int = 8, max_batch_tokens: int = 64, **options: Any) -> CudaExecutor:
        on_device(built)
        manifest = load_manifest(built.artifact)
        executor = CudaExecutor.load(
            built.artifact, manifest, kv_memory=KV_MEMORY, max_num_seqs=max_num_seqs, max_batch_tokens=max_batch_tokens, **options
        )
        loaded.append(executor)
        return executor

    yield load
    for executor in loaded:
        executor.close()
    gc.collect()

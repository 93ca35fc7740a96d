"""Weights into the GPU's memory: every byte at its place, whatever the size of the buffers that it goes through."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import FakeCuda, fake_cuda_installed, memory

from engine.errors import ArtifactError
from engine.runtime.cuda.device import Device
from engine.runtime.cuda.driver import Driver
from engine.runtime.cuda.weights import READ_BYTES, Layout, upload
from engine.runtime.weights import Span

SIZES = (1, 255, 256, 257, 5000, 3, 4096, 10_000, 64)


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with fake_cuda_installed() as fake:
        yield fake


def write(directory: Path, sizes: tuple[int, ...]) -> tuple[dict[str, Span], dict[str, bytes]]:
    """Tensors of these sizes, in two files in turns, with bytes between them."""
    random = np.random.default_rng(0)
    content = {f"t{index}": random.integers(0, 256, size, np.uint8).tobytes() for index, size in enumerate(sizes)}
    files = [bytearray(b"header"), bytearray()]
    spans = {}
    for index, (name, data) in enumerate(content.items()):
        file = files[index % 2]
        file += b"gap"
        spans[name] = Span(directory / f"{index % 2}", len(file), len(data))
        file += data
    for index, file in enumerate(files):
        (directory / f"{index}").write_bytes(file)
    return spans, content


@pytest.mark.parametrize("staging", [256, 512, 1024, 4096, 1 << 20])
def test_every_tensor_arrives(fake: FakeCuda, tmp_path: Path, staging: int) -> None:
    spans, content = write(tmp_path, SIZES)
    layout = Layout(spans)
    with Device(Driver()) as device, device.allocate(layout.nbytes, "weights", hint="") as there:
        upload(device, layout, there.handle, staging_bytes=staging)
        regions = layout.regions(there.handle)
        assert all(region.address % 256 == 0 for region in regions.values())
        found = {name: memory(region.address, "u1", region.nbytes).tobytes() for name, region in regions.items()}
        assert found == content
        assert fake.alive() == {"context": 1, "device": 1}


def test_large_tensors_are_read_in_pieces(tmp_path: Path) -> None:
    spans, _ = write(tmp_path, (3 * READ_BYTES + 5, 7))
    (window,) = Layout(spans).windows(1 << 30)
    assert [read.nbytes for read in window[2]] == [READ_BYTES] * 3 + [5, 7]


def test_no_weights_at_all(fake: FakeCuda) -> None:
    with Device(Driver()) as device, device.allocate(0, "weights", hint="") as there:
        upload(device, Layout({}), there.handle)


@pytest.mark.parametrize("damage", ["short", "gone"])
def test_a_file_that_changed_since_it_was_checked(fake: FakeCuda, tmp_path: Path, damage: str) -> None:
    spans, _ = write(tmp_path, SIZES)
    if damage == "short":
        (tmp_path / "1").write_bytes(b"little")
    else:
        (tmp_path / "1").unlink()
    layout = Layout(spans)
    with Device(Driver()) as device, device.allocate(layout.nbytes, "weights", hint="") as there:
        with pytest.raises(ArtifactError, match=r"1 cannot be read: .*(too early|No such file)"):
            upload(device, layout, there.handle, staging_bytes=512)
        assert fake.alive() == {"context": 1, "device": 1}

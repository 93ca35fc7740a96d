"""Weights from their files into the GPU's memory, through two pinned buffers.

One buffer is read into while the other is copied from, so this process never holds more of the
model than the two. A buffer is a window of the GPU's memory as it is to become: many small
tensors, or a piece of a large one, go over in one copy.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from ...cpus import usable_cpus
from ...errors import ArtifactError
from ..weights import Span
from .device import Device, Pinned, Resource
from .region import Region, align

STAGING_BYTES = 64 << 20
READ_BYTES = 4 << 20
"""What one thread reads at a time: one thread alone copies slower from the page cache than the GPU takes it."""
MAX_READERS = 8


class _Read(NamedTuple):
    """Bytes of a file, and where in a window they go."""

    path: Path
    begin: int
    at: int
    nbytes: int


class Layout:
    """Where each tensor goes within one allocation of `nbytes`."""

    def __init__(self, spans: Mapping[str, Span]) -> None:
        self._spans = spans
        self.offsets: dict[str, int] = {}
        self.nbytes = 0
        for name, span in spans.items():
            self.offsets[name] = self.nbytes
            self.nbytes = align(self.nbytes + span.nbytes)

    @property
    def paths(self) -> set[Path]:
        return {span.path for span in self._spans.values()}

    def regions(self, address: int) -> dict[str, Region]:
        return {name: Region(address + offset, self._spans[name].nbytes) for name, offset in self.offsets.items()}

    def windows(self, size: int) -> Iterator[tuple[int, int, list[_Read]]]:
        """For each window: its begin, its end, and what to read into it."""
        begin, reads = 0, list[_Read]()
        for name, span in self._spans.items():
            offset, done = self.offsets[name], 0
            while done < span.nbytes:
                if offset + done >= begin + size:
                    yield begin, begin + size, reads
                    begin, reads = begin + size, []
                at = offset + done - begin
                count = min(span.nbytes - done, size - at, READ_BYTES)
                reads.append(_Read(span.path, span.begin + done, at, count))
                done += count
        if reads:
            yield begin, min(begin + size, self.nbytes), reads


def upload(device: Device, layout: Layout, address: int, *, staging_bytes: int = STAGING_BYTES) -> None:
    """Fill the memory at `address`; returns when all of it is there. Raises ArtifactError for a file that cannot be read."""
    size = min(staging_bytes, layout.nbytes)
    with ExitStack() as held:
        stream = held.enter_context(device.stream())
        buffers = [_Buffer(device, size, held) for _ in range(2)]
        held.callback(device.driver.function("cuStreamSynchronize"), stream.handle)  # also after an error, before the buffers go
        files = _Files(layout.paths, held)
        pool = held.enter_context(ThreadPoolExecutor(min(MAX_READERS, len(usable_cpus()))))
        for index, (begin, end, reads) in enumerate(layout.windows(size)):
            buffer = buffers[index % 2]
            buffer.wait()
            for _ in pool.map(lambda read, buffer=buffer: files.read(read, buffer.pinned), reads):
                pass
            buffer.copy(address + begin, end - begin, stream)
        device.driver.call("cuStreamSynchronize", stream.handle)


class _Buffer:
    """Pinned memory, and the event after which it may be written again."""

    def __init__(self, device: Device, nbytes: int, held: ExitStack) -> None:
        self._driver = device.driver
        self.pinned = held.enter_context(device.pinned(nbytes))
        self._copied = held.enter_context(device.event())

    def wait(self) -> None:
        self._driver.call("cuEventSynchronize", self._copied.handle)

    def copy(self, address: int, nbytes: int, stream: Resource) -> None:
        self._driver.call("cuMemcpyHtoDAsync_v2", address, self.pinned.handle, nbytes, stream.handle)
        self._driver.call("cuEventRecord", self._copied.handle, stream.handle)


class _Files:
    """Weight files, each opened once."""

    def __init__(self, paths: Iterable[Path], held: ExitStack) -> None:
        self._descriptors: dict[Path, int] = {}
        for path in paths:
            try:
                self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise _unreadable(path, error) from error
            held.callback(os.close, self._descriptors[path])

    def read(self, read: _Read, into: Pinned) -> None:
        target, at = into.bytes.data[read.at : read.at + read.nbytes], read.begin
        try:
            while target:
                count = os.preadv(self._descriptors[read.path], [target], at)
                if count == 0:
                    raise OSError("it ends too early")
                target, at = target[count:], at + count
        except OSError as error:
            raise _unreadable(read.path, error) from error


def _unreadable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"{path} cannot be read: {error}", hint="copy or build the artifact again")

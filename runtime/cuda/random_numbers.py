"""Memory of the GPU full of random numbers, for measuring code without anybody's weights. Never a part of serving.

Not zeros: matrix units draw less power on those and run faster. The numbers are small and finite
whatever a tensor's rows hold; bytes of quantized rows are such that as quants, as float16 scales
and as float32 scales they are all of them sane, at the price of three random bits in each.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .device import Device, Resource
from .region import Region

BLOCK_BYTES = 8 << 20
_HIGH_BYTES = {"bfloat16": 0x3C, "float16": 0x24, "float32": 0x3C}
"""Sign and most of the exponent: 0.008 to 0.03 in size."""
_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_BYTE = 0x3A
_SIGN = 0x80


def random_block(dtype: str, nbytes: int, seed: int = 0) -> NDArray[np.uint8]:
    """Bytes of random numbers of a dtype, the same for the same seed."""
    block = np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)
    if dtype not in _HIGH_BYTES:
        block[:] = (_BYTE + (block & 3)) | (block & _SIGN)
        return block
    high = block[_ITEM_BYTES[dtype] - 1 :: _ITEM_BYTES[dtype]]
    high[:] = (high & _SIGN) | _HIGH_BYTES[dtype]
    return block


def fill_random(device: Device, stream: Resource, regions: Mapping[str, Region], dtypes: Mapping[str, str]) -> None:
    """Fill each region with numbers of the dtype of its name: one block of each dtype, over and over. Returns when all of it is there."""
    with device.pinned(BLOCK_BYTES) as ours:
        for dtype in sorted(set(dtypes.values())):
            ours.bytes[:] = random_block(dtype, BLOCK_BYTES)
            for name in (name for name, found in dtypes.items() if found == dtype):
                _fill(device, stream, regions[name], ours)
            device.driver.call("cuStreamSynchronize", stream.handle)


def _fill(device: Device, stream: Resource, region: Region, block: Resource) -> None:
    """The first copy comes from here, the others from what is there already, each twice as long as the one before."""
    call, done = device.driver.call, min(BLOCK_BYTES, region.nbytes)
    call("cuMemcpyHtoDAsync_v2", region.address, block.handle, done, stream.handle)
    while done < region.nbytes:
        count = min(done, region.nbytes - done)
        call("cuMemcpyDtoDAsync_v2", region.address + done, region.address, count, stream.handle)
        done += count

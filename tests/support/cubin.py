"""What a cubin says of itself: the sizes of its kernels' parameters."""

import struct

_PARAMETER = 0x17
"""EIATTR_KPARAM_INFO: index, ordinal and offset of a parameter, and in the upper bits of the last word its size."""
_WITH_BYTES = 4
"""EIFMT_SVAL: the attribute's bytes follow its header."""


def sections(cubin: bytes) -> dict[str, bytes]:
    """An ELF file's sections by name; empty if it has no table of them."""
    (begin,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQ", cubin, begin + index * size) for index in range(count)] if size >= 64 else []
    found = {}
    for name, _, _, _, offset, length in headers:
        at = headers[names][4] + name
        found[cubin[at : cubin.index(b"\0", at)].decode()] = cubin[offset : offset + length]
    return found


def parameter_sizes(cubin: bytes, function: str) -> list[int] | None:
    """Bytes of each parameter in order, None if the cubin does not tell."""
    info = sections(cubin).get(f".nv.info.{function}")
    if info is None:
        return None
    sizes: dict[int, int] = {}
    at = 0
    while at < len(info):
        form, attribute, length = struct.unpack_from("<BBH", info, at)
        at += 4
        if form != _WITH_BYTES:
            continue
        if attribute == _PARAMETER:
            _, ordinal, _, word = struct.unpack_from("<IHHI", info, at)
            sizes[ordinal] = word >> 18
        at += length
    return [sizes[ordinal] for ordinal in sorted(sizes)]

"""Where each intermediate result of a step lies in one workspace: known at build, since a graph's sizes are."""

from collections.abc import Mapping

ALIGNMENT = 256


def assign_offsets(sizes: Mapping[int, int], lifetimes: Mapping[int, tuple[int, int]]) -> tuple[dict[int, int], int]:
    """Offsets of buffers, and the bytes of a workspace that holds them.

    sizes: bytes of each buffer; lifetimes: the first and the last launch, both included, that touch
    it. No two buffers that are alive at the same launch overlap. Each goes, in the order of first
    launches, to the smallest gap that it fits in.
    """
    gaps: list[tuple[int, int]] = []
    end = 0
    offsets: dict[int, int] = {}
    expiring: dict[int, list[int]] = {}
    for buffer in sorted(lifetimes, key=lambda buffer: (lifetimes[buffer], buffer)):
        first, last = lifetimes[buffer]
        for time in sorted(time for time in expiring if time < first):
            for dead in expiring.pop(time):
                gaps = _merge(gaps, offsets[dead], _rounded(sizes[dead]))
        size = _rounded(sizes[buffer])
        offset, gaps, end = _take(gaps, size, end)
        offsets[buffer] = offset
        expiring.setdefault(last, []).append(buffer)
    return offsets, end


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _take(gaps: list[tuple[int, int]], size: int, end: int) -> tuple[int, list[tuple[int, int]], int]:
    """Offset, remaining gaps and end of the workspace after taking `size` bytes."""
    fitting = [gap for gap in gaps if gap[1] >= size]
    if fitting:
        start, length = min(fitting, key=lambda gap: (gap[1], gap[0]))
        rest = [(start + size, length - size)] if length > size else []
        return start, sorted([gap for gap in gaps if gap != (start, length)] + rest), end
    if gaps and sum(gaps[-1]) == end:  # the last gap reaches to the end: grow it
        start = gaps[-1][0]
        return start, gaps[:-1], start + size
    return end, gaps, end + size


def _merge(gaps: list[tuple[int, int]], start: int, length: int) -> list[tuple[int, int]]:
    """The gaps with one more, neighbours joined."""
    merged: list[tuple[int, int]] = []
    for begin, size in sorted([*gaps, (start, length)]):
        if merged and sum(merged[-1]) == begin:
            merged[-1] = (merged[-1][0], merged[-1][1] + size)
        else:
            merged.append((begin, size))
    return merged

"""What numbers in an artifact's files may be. A type says it, so that every reader refuses others before it computes with them."""

from typing import Annotated

from msgspec import Meta

MOST = 2**53
"""Every number up to here is the same for every reader of JSON, and products of a few of them are still floats."""

Count = Annotated[int, Meta(ge=0, le=MOST)]
"""Of bytes, nodes, calls."""
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
"""Of something that is there: code counts it in 32 bits."""
Index = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Threads = Annotated[int, Meta(ge=1, le=1024)]
"""Of a block of a kernel."""
SharedBytes = Annotated[int, Meta(ge=0, le=227 << 10)]
"""Of a block of a kernel; no GPU has more so far."""
Grid = tuple[Size, Annotated[int, Meta(ge=1, le=65_535)], Annotated[int, Meta(ge=1, le=65_535)]]
"""Blocks of a launch; CUDA takes no more."""
Shape = Annotated[list[Annotated[int, Meta(ge=0, le=MOST)]], Meta(max_length=8)]
Seconds = Annotated[int, Meta(ge=0, le=253_402_300_799)]
"""Since 1970, until the year 9999."""
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Number = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""What an argument of a kernel can be at most."""

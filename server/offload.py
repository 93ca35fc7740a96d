"""Work that other clients would notice is done beside the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

LONG = 4_000
"""Characters or tokens whose text or tokens take about a millisecond to find."""
_T = TypeVar("_T")


async def offload(size: int, work: Callable[[], _T]) -> _T:
    """Runs `work` beside the event loop if it handles so many characters, bytes or tokens that others would notice."""
    return await asyncio.to_thread(work) if size > LONG else work()

"""Where texts become tokens: at once, in a thread, or in a process of its own, so that no stream pauses for a text of another request."""

import asyncio
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..errors import RequestError
from ..protocol import header
from .offload import offload
from .text.text import Text
from .text.token_jobs import Job, pack_job, unpack_answer
from .text.whole_texts import Tokens
from .workers.ask_process import ask_process
from .workers.process import describe_exit

VERY_LONG = 1_000_000
"""Characters whose tokens as Python's numbers take the interpreter away from all threads for more than ten milliseconds."""
MODULE = "engine.server.text.tokenize_process"
PROCESSES = 1
"""At a time: each takes a core, and a hundred times as much memory as its text."""


@dataclass(frozen=True)
class Tokenizing:
    """By the tokenizer of an artifact. directory, digest: of that artifact, for a process that reads it again."""

    text: Text
    directory: Path
    digest: str
    _free: asyncio.Semaphore = field(init=False, default_factory=lambda: asyncio.Semaphore(PROCESSES))

    async def run(self, job: Job) -> list[Tokens]:
        """Raises RequestError for what is no text, and if the process ends before it has answered."""
        characters = job.characters()
        if characters <= VERY_LONG:
            return await offload(characters, partial(job.run, self.text))
        try:
            packed = pack_job(job)
        except UnicodeEncodeError:
            return job.run(self.text)  # which says what is wrong with it
        async with self._free:
            return await self._elsewhere(packed)

    async def _elsewhere(self, packed: bytes) -> list[Tokens]:
        try:
            code, answer = await ask_process(MODULE, str(self.directory), self.digest, request=(header(packed), packed))
        except OSError as error:
            raise _failed(f"cannot be started: {error}") from error
        if code != 0:
            raise _failed(describe_exit(code))
        return unpack_answer(answer)


def _failed(how: str) -> RequestError:
    return RequestError(
        f"the text was not tokenized: the process for texts of more than {VERY_LONG:,} characters {how}",
        status=500,
        code="tokenizing_failed",
        hint="send a shorter text, or again in a while; the server's log may say more",
    )

"""The load: what every peer is asked, the same prompts in the same order."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from engine.bench.workload import Request, open_tokenizer, random_requests
from engine.server.text.text import Text

PHASES = ("startup", "single", "ttft", "throughput")
CONCURRENCY = (8, 32)

_QUESTION = "Name the capital city of France."
"""One that every kind of weights answers alike: no word of the answer is a close call."""
EXPECTED = "Paris"


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much of each. Lengths are in tokens, limits in seconds. attempts: how often a disturbed run is taken at most.

    question: whether a peer must answer one rightly first, which random weights cannot. concurrency: of the loads of several clients.
    """

    runs: int = 3
    attempts: int = 3
    starts: int = 5
    single_requests: int = 5
    single_prompt: int = 16
    single_output: int = 128
    ttft_requests: int = 5
    ttft_prompt: int = 1500
    requests: int = 64
    prompt: tuple[int, int] = (32, 256)
    output: int = 64
    time_limit_s: float = 240.0
    question: bool = True
    concurrency: tuple[int, ...] = CONCURRENCY

    @classmethod
    def tiny(cls) -> "Load":
        """Enough to see that a peer works."""
        return cls(
            runs=1, attempts=1, starts=1, single_requests=1, single_output=16, ttft_requests=1, ttft_prompt=300, requests=8, output=8
        )


class Prompts:
    """The requests of each phase. A seed gives prompts that share no beginning with those of another run."""

    def __init__(self, tokenizer: Tokenizer, text: Text, load: Load) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self._load = load

    def first(self) -> Request:
        """A short prompt and one token: what a start is measured with."""
        return self._random(1, (8, 8), 1, 1)[0]

    def single(self, seed: int) -> list[Request]:
        length = self._load.single_prompt
        return self._random(self._load.single_requests, (length, length), self._load.single_output, 1000 + seed)

    def long(self, seed: int) -> list[Request]:
        length = self._load.ttft_prompt
        return self._random(self._load.ttft_requests, (length, length), 2, 2000 + seed)

    def many(self, seed: int) -> list[Request]:
        return self._random(self._load.requests, self._load.prompt, self._load.output, 3000 + seed)

    def warm_up(self, concurrency: int) -> list[Request]:
        return self._random(concurrency, self._load.prompt, 4, 2)

    def question(self, chat: bool) -> Request:
        """A chat whose answer is known. chat: the server renders the prompt itself."""
        if chat:
            return Request(_QUESTION, 0, 24)
        return Request(self._text.render_chat([{"role": "user", "content": _QUESTION}]), 0, 24)

    def _random(self, count: int, prompt: tuple[int, int], output: int, seed: int) -> list[Request]:
        return random_requests(self._tokenizer, count, prompt, (output, output), seed)


def open_prompts(artifacts: Path, load: Load) -> Prompts:
    return Prompts(open_tokenizer(artifacts), Text.load(artifacts / "tokenizer"), load)

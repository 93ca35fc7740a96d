"""What a runner and benchmarks/peers/session.py say to each other; standard library only, any environment.

One JSON object per line. In: {"requests": [{"prompt", "max_tokens"}], "concurrency", "time_limit_s", "exact"}.
Out: {"begin_s", "results": [...]} with the fields of engine.bench.stream.Result, times since `begin_s`,
which is on the clock of all processes (time.perf_counter on Linux), or {"error"}.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is no reply


@dataclass
class Answer:
    """One request and the tokens that came so far, with the time of each."""

    prompt: str
    wanted_tokens: int
    start_s: float = 0.0
    prompt_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    end_s: float | None = None

    def start(self) -> None:
        self.start_s = time.perf_counter()

    def take(self, token_ids: Sequence[int]) -> None:
        """Tokens that have just come."""
        now = time.perf_counter()
        self.token_ids += token_ids
        self.times_s += [now] * len(token_ids)

    def finish(self) -> None:
        self.end_s = time.perf_counter()


@dataclass(frozen=True)
class Job:
    """Answer `answers`, `concurrency` at once, until `deadline_s`. exact: do not stop at the end of text."""

    answers: list[Answer]
    concurrency: int
    deadline_s: float
    exact: bool

    def over(self) -> bool:
        return time.perf_counter() >= self.deadline_s


def serve(do: Callable[[Job], None], text_of: Callable[[list[int]], str]) -> None:
    """Answer jobs from standard input until it ends. `do` does one, `text_of` makes text of tokens."""
    for line in sys.stdin:
        try:
            reply = _reply(json.loads(line), do, text_of)
        except Exception:
            traceback.print_exc()
            reply = {"error": "the runner failed"}
        print(json.dumps(reply), file=_replies, flush=True)


def _reply(asked: dict[str, Any], do: Callable[[Job], None], text_of: Callable[[list[int]], str]) -> dict[str, Any]:
    answers = [Answer(request["prompt"], request["max_tokens"]) for request in asked["requests"]]
    begin = time.perf_counter()
    do(Job(answers, asked["concurrency"], begin + asked["time_limit_s"], asked["exact"]))
    end = time.perf_counter()
    return {"begin_s": begin, "results": [_result(answer, begin, end, text_of) for answer in answers if answer.start_s]}


def _result(answer: Answer, begin: float, end: float, text_of: Callable[[list[int]], str]) -> dict[str, Any]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "output_tokens": len(answer.token_ids),
        "start_s": answer.start_s - begin,
        "token_times_s": [time_s - begin for time_s in answer.times_s],
        "end_s": (answer.end_s or end) - begin,
        "text": text_of(answer.token_ids),
        "cut": answer.end_s is None,
        "wanted_tokens": answer.wanted_tokens,
    }

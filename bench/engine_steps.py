"""An engine in this process, driven step by step with prompts that it has never seen."""

import random
import time
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import UsageError, WorkerError
from ..protocol import SamplingParams, StepDone, Submit
from ..runtime.core import EngineCore

_SETTLE_STEPS = 3
"""Decode steps before those that count: the first ones touch memory for the first time."""


class StepTime(NamedTuple):
    """compute_s: the part in which the model runs and chooses tokens; a server does the rest beside the next step."""

    total_s: float
    compute_s: float


class EngineSteps:
    """Measures prefill and decode of one EngineCore, which nobody else uses. Greedy, and the end of text is ignored."""

    def __init__(self, core: EngineCore, *, vocab_size: int, max_context: int) -> None:
        self._core = core
        self._vocab_size = vocab_size
        self._max_context = max_context
        self._random = random.Random(0)
        self._submitted = 0

    def check_prefill(self, tokens: int) -> None:
        """Raises UsageError if a prompt of that length cannot be measured."""
        self._check_fits(1, tokens + 1)

    def check_decode(self, batch: int, context: int, steps: int) -> None:
        """Raises UsageError if that many steps of such sequences cannot be measured."""
        self._check_fits(batch, self._longest(batch, context, steps))

    def prefill(self, tokens: int) -> float:
        """Seconds from the request of one prompt to its first token."""
        begin = time.perf_counter()
        ids = self._submit(1, tokens, max_tokens=1)
        self._until_first_tokens(ids)
        return time.perf_counter() - begin

    def decode(self, batch: int, context: int, steps: int) -> list[StepTime]:
        """`steps` steps in which `batch` sequences of about `context` tokens get one token each."""
        ids = self._submit(batch, context, max_tokens=self._longest(batch, context, steps) - context)
        self._until_first_tokens(ids)
        for _ in range(_SETTLE_STEPS):
            self._step()
        times = []
        for _ in range(steps):
            begin = time.perf_counter()
            done = self._step()
            times.append(StepTime(total_s=time.perf_counter() - begin, compute_s=done.stats.step_seconds))
            assert len(done.outputs) == batch, "not every sequence decodes in every step"
        self._forget(ids)
        return times

    def _longest(self, batch: int, context: int, steps: int) -> int:
        """Tokens of the sequence that is prefilled first, and decodes while the others are."""
        budget = self._core.ready.max_batch_tokens
        while_others_prefill = batch * context // max(1, budget - batch) + batch
        return context + while_others_prefill + _SETTLE_STEPS + steps

    def _check_fits(self, batch: int, tokens: int) -> None:
        if tokens > self._max_context:
            raise UsageError(f"{tokens} tokens do not fit the model's context of {self._max_context}", hint="ask for shorter contexts")
        if not self._core.holds(batch, tokens):
            raise UsageError(f"the KV cache does not hold {batch} sequences of {tokens} tokens", hint="give more --kv-memory")

    def _submit(self, count: int, tokens: int, max_tokens: int) -> list[str]:
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        ids = [str(self._submitted + index) for index in range(count)]
        self._submitted += count
        for id in ids:
            self._core.submit(Submit(id, [self._random.randrange(self._vocab_size) for _ in range(tokens)], params))
        return ids

    def _until_first_tokens(self, ids: Sequence[str]) -> None:
        waiting = set(ids)
        while waiting:
            waiting -= {output.id for output in self._step().outputs}

    def _step(self) -> StepDone:
        done = self._core.step()
        for output in done.outputs:
            if output.error is not None:
                raise WorkerError(f"the engine refused a prompt: {output.error}", hint="ask for shorter prompts or fewer of them at a time")
        return done

    def _forget(self, ids: Sequence[str]) -> None:
        for id in ids:
            self._core.abort(id)
        while self._core.has_work():
            self._core.step()

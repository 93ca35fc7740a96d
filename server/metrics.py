"""What this server has done, counted as it happens; metrics_page.py shows it."""

import time

from .generation import Observer
from .histogram import Histogram
from .text.assembler import Plan

_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_WHOLE_REQUEST = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)
_TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))


class Metrics(Observer):
    """Histograms of times are in seconds, from a request's arrival on. finished_sequences: by the reason why.

    own_phases: seconds that each phase of this process's start took.
    """

    def __init__(self, own_phases: dict[str, float]) -> None:
        self.own_phases = own_phases
        self._last_token: dict[str, float] = {}
        self._first_token = Histogram("time_to_first_token_seconds", "From arrival to the first token.", _FIRST_TOKEN)
        self._between_tokens = Histogram("inter_token_latency_seconds", "Between one token and the next.", _BETWEEN_TOKENS)
        self._whole_request = Histogram("e2e_request_latency_seconds", "From arrival to the last token.", _WHOLE_REQUEST)
        self._prompt_tokens = Histogram("request_prompt_tokens", "Tokens of each prompt.", _TOKENS)
        self._generation_tokens = Histogram("request_generation_tokens", "Tokens generated for each request.", _TOKENS)
        self.finished_sequences = {"stop": 0, "length": 0, "abort": 0}

    @property
    def histograms(self) -> tuple[Histogram, ...]:
        return self._first_token, self._between_tokens, self._whole_request, self._prompt_tokens, self._generation_tokens

    def produced(self, plan: Plan, new: int) -> None:
        now = time.monotonic()
        last = self._last_token.get(plan.id)
        if last is None:
            self._first_token.observe(now - plan.arrived)
            self._between_tokens.observe(0.0, new - 1)
        else:
            self._between_tokens.observe((now - last) / new, new)
        self._last_token[plan.id] = now

    def finished(self, plan: Plan, generated: int, reason: str) -> None:
        self._last_token.pop(plan.id, None)
        self.finished_sequences[reason] = self.finished_sequences.get(reason, 0) + 1
        if reason != "abort":
            self._whole_request.observe(time.monotonic() - plan.arrived)
            self._prompt_tokens.observe(len(plan.prompt))
            self._generation_tokens.observe(generated)

"""The worker's loop with the order of events in a test's hands."""

from dataclasses import dataclass, field

from engine.protocol import Output, PromptLogprob
from engine.runtime.core import EngineCore
from engine.runtime.step import Computed, Step


@dataclass
class Pipelined:
    """What the worker's loop does, one thing after the other, with the order of events in the test's hands.

    The fake executor checks each step's inputs, and `check` the cache after each event.
    """

    core: EngineCore
    at_hand: Step | None = None
    result: Computed | None = None
    planned: Step | None = None
    tokens: dict[str, list[int]] = field(default_factory=dict)
    scores: dict[str, list[PromptLogprob]] = field(default_factory=dict)
    routes: dict[str, list[bytes]] = field(default_factory=dict)
    ended: dict[str, Output] = field(default_factory=dict)

    def take_back(self) -> None:
        if self.planned is not None:
            self.core.withdraw(self.planned)
            self.planned = None

    def begin(self) -> None:
        if self.at_hand is None:
            self.at_hand = self.core.plan()

    def plan_ahead(self) -> None:
        if self.at_hand is not None and self.planned is None:
            self.planned = self.core.plan(ahead=True)

    def compute(self) -> None:
        if self.at_hand is not None and self.result is None:
            self.result = self.core.compute(self.at_hand)

    def finish(self, *, next_has_begun: bool) -> None:
        """Take the result. If the next step has begun, it is computed before anybody has looked at this one's tokens."""
        if self.at_hand is None or self.result is None:
            return
        if self.result.surprises:
            self.take_back()
        begun = next_has_begun and self.planned is not None
        after = self.core.compute(self.planned) if begun and self.planned is not None else None
        if not begun:
            self.take_back()
        self.collect(self.core.finish(self.at_hand, self.result).outputs)
        self.at_hand, self.planned, self.result = self.planned, None, after

    def collect(self, outputs: list[Output]) -> None:
        for output in outputs:
            assert output.id not in self.ended, "output after the end"
            self.tokens.setdefault(output.id, []).extend(output.tokens)
            self.scores.setdefault(output.id, []).extend(output.prompt_logprobs)
            self.routes.setdefault(output.id, []).extend(output.routed_experts)
            if output.finish_reason is not None:
                self.ended[output.id] = output

    def run(self) -> None:
        """To the end, always one step ahead."""
        while self.core.has_work() or self.at_hand is not None:
            self.begin()
            self.plan_ahead()
            self.compute()
            self.finish(next_has_begun=True)
            self.core.check()

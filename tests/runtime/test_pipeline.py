"""The thread that computes: what it begins by itself, and when it waits to be told."""

import threading
from queue import SimpleQueue
from typing import cast

from engine.runtime.process.pipeline import Pipeline
from engine.runtime.step import Computed, Step


class Steps:
    """Stands for a core: computes whatever it is given, and remembers it. `ending` are steps that end a sequence."""

    def __init__(self, *ending: str, gated: str = "") -> None:
        self.begun: list[str] = []
        self.ending = ending
        self.gated = gated
        self.gate = threading.Semaphore(0)
        self.reached = threading.Semaphore(0)
        self.results: SimpleQueue[Computed | Exception] = SimpleQueue()

    def pipeline(self) -> Pipeline:
        return Pipeline(self.compute, self.results.put)

    def compute(self, step: Step) -> Computed:
        name = cast(str, step)
        self.begun.append(name)
        if name == self.gated:
            self.reached.release()
            self.gate.acquire()
        if name == "broken":
            raise RuntimeError("this step is broken")
        return Computed([], [], float(len(self.begun)), name in self.ending)

    def result(self) -> Computed:
        result = self.results.get()
        assert isinstance(result, Computed)
        return result


def step(name: str) -> Step:
    return cast(Step, name)


def test_the_next_step_is_begun_before_anybody_looks_at_the_result() -> None:
    steps = Steps(gated="c")
    with steps.pipeline() as pipeline:
        for name in "abc":
            pipeline.put(step(name))
        steps.reached.acquire()
        assert steps.begun == ["a", "b", "c"]
        steps.gate.release()
        assert [steps.result().seconds for _ in range(3)] == [1.0, 2.0, 3.0]


def test_a_step_that_has_not_been_begun_can_be_taken_back() -> None:
    steps = Steps(gated="a")
    with steps.pipeline() as pipeline:
        pipeline.put(step("a"))
        steps.reached.acquire()
        pipeline.put(step("b"))
        assert pipeline.take_back()
        assert not pipeline.take_back()
        assert steps.results.empty()
        steps.gate.release()
        steps.result()
        pipeline.put(step("c"))
        steps.result()
    assert steps.begun == ["a", "c"]


def test_the_step_put_last_is_taken_back_whether_or_not_the_first_has_been_begun() -> None:
    for _ in range(200):
        steps = Steps()
        with steps.pipeline() as pipeline:
            pipeline.put(step("a"))
            pipeline.put(step("b"))
            taken_back = pipeline.take_back()
            steps.result()
            if not taken_back:
                steps.result()
        assert steps.begun == (["a"] if taken_back else ["a", "b"])


def test_after_an_end_nothing_is_begun_until_it_may_go_on() -> None:
    steps = Steps("a")
    with steps.pipeline() as pipeline:
        pipeline.put(step("a"))
        pipeline.put(step("b"))
        assert steps.result().surprises
        assert pipeline.take_back(), "b waits"
        pipeline.put(step("c"))
        pipeline.go_on()
        assert not steps.result().surprises
    assert steps.begun == ["a", "c"]


def test_what_a_step_raises_is_delivered_and_nothing_follows() -> None:
    steps = Steps()
    with steps.pipeline() as pipeline:
        pipeline.put(step("broken"))
        pipeline.put(step("after"))
        assert "this step is broken" in str(steps.results.get())
    assert steps.begun == ["broken"]


def test_the_end_waits_for_the_step_at_hand_and_drops_the_next() -> None:
    steps = Steps(gated="a")
    with steps.pipeline() as pipeline:
        pipeline.put(step("a"))
        steps.reached.acquire()
        pipeline.put(step("b"))
        take_back = pipeline.take_back

        def take_back_and_let_go() -> bool:
            taken = take_back()
            steps.gate.release()
            return taken

        pipeline.take_back = take_back_and_let_go  # type: ignore[method-assign]
    assert steps.begun == ["a"]
    assert steps.result().seconds == 1.0

"""Which worker a prompt goes to."""

import random

import pytest

from engine.server.workers import route
from engine.server.workers.route import TOKENS, Choice, Route

IDLE = [0.0, 0.0, 0.0]


def prompt(seed: int, blocks: int = 3, more: int = 5) -> list[int]:
    return [random.Random(f"{seed} {place}").randrange(1000) for place in range(blocks * TOKENS + more)]


def test_the_first_of_equals_and_the_least_loaded() -> None:
    route = Route(3)
    assert route.choose(prompt(1), IDLE) == Choice(0, len(prompt(1)))
    assert route.choose(prompt(2), [5, 4, 4]) == Choice(1, len(prompt(2)))
    assert route.choose(prompt(3), [5, 4, 3]) == Choice(2, len(prompt(3)))


def test_a_prompt_goes_where_its_beginning_was_sent() -> None:
    route = Route(3)
    route.choose(prompt(1), [1, 1, 0])
    longer = [*prompt(1)[: 2 * TOKENS], *prompt(9)]
    assert route.choose(longer, IDLE) == Choice(2, len(longer) - 2 * TOKENS)
    assert route.choose(prompt(1)[1:], IDLE).worker == 0, "the same tokens elsewhere are no beginning"
    assert route.choose(longer, IDLE) == Choice(2, len(longer) - len(longer) // TOKENS * TOKENS)


def test_the_last_token_is_always_computed() -> None:
    route = Route(2)
    whole = prompt(1, more=0)
    route.choose(whole, [1, 0])
    assert route.choose(whole, [0, 0]) == Choice(1, 1)
    assert Route(2).choose([7], [0, 0]) == Choice(0, 1)


def test_what_waits_there_may_outweigh_it() -> None:
    asked = prompt(1)
    for load, worker in ((3 * TOKENS - 1, 1), (3 * TOKENS + 1, 0)):
        route = Route(2)
        route.choose(asked, [1, 0])
        assert route.choose(asked, [0, load]).worker == worker


def test_a_worker_that_began_anew_has_nothing() -> None:
    route = Route(2)
    route.choose(prompt(1), [1, 0])
    route.forget(1)
    assert route.choose(prompt(1), [0, 0]) == Choice(0, len(prompt(1)))


def test_beginnings_that_nobody_asks_for_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "KEPT", 7)
    known = Route(2)
    for seed in (1, 2, 1, 3):
        known.choose(prompt(seed), [1, 0])
    assert known.choose(prompt(1), [0, 0]).uncached == 5
    assert known.choose(prompt(2), [0, 0]).uncached == 2 * TOKENS + 5, "of the oldest the first block is left"

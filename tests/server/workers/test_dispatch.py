"""Who gets a worker's outputs, and what another one gets after its death; without a worker."""

import asyncio
from collections.abc import Iterable
from typing import Any, cast

import pytest

from engine.errors import EngineError, RequestError
from engine.protocol import Abort, Output, Ready, SamplingParams, Stats, Submit
from engine.server.workers.dispatch import Dispatch
from engine.server.workers.progress import Progress
from engine.server.workers.recent_requests import KEPT, KEPT_SECONDS, RecentRequests
from engine.server.workers.totals import Totals

PARAMS = SamplingParams(max_tokens=9, seed=1)


class Life:
    """A worker that is told things."""

    serving = True
    ready = Ready(num_blocks=9, max_tokens=1600, max_batch_tokens=64, max_num_seqs=2)

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.progress = Progress()

    def check_open(self) -> None:
        pass

    def send(self, message: Any) -> None:
        if self.serving:
            self.sent.append(message)

    def taken(self) -> list[Any]:
        """What came since the last look: (id, tokens generated before) of submits, ids of aborts."""
        new, self.sent = self.sent, []
        return [message.id if isinstance(message, Abort) else (message.id, message.generated) for message in new]


class Client:
    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.error: EngineError | None = None

    def put(self, output: Output) -> None:
        self.outputs.append(output)

    def fail(self, error: EngineError) -> None:
        self.error = error


def submits(*ids: str) -> list[Submit]:
    return [Submit(id=id, prompt=[1], params=PARAMS) for id in ids]


def setting(max_queue: int | None = None) -> tuple[Life, Dispatch, Client]:
    life = Life()
    return life, Dispatch(cast(Any, life)), Client()


def test_outputs_go_to_who_asked_until_the_last() -> None:
    life, dispatch, client = setting()
    dispatch.generate(submits("a", "b"), client)
    dispatch.put(Output("a", [5], finish_reason="stop"))
    dispatch.put(Output("a", [6], finish_reason=None))
    dispatch.put(Output("unknown", [7], finish_reason=None))
    assert [output.tokens for output in client.outputs] == [[5]]
    assert dispatch.sequences == 1
    dispatch.abandon("b")
    dispatch.abandon("b")
    assert life.taken() == [("a", []), ("b", []), "b"]
    asyncio.run(asyncio.wait_for(dispatch.until_idle(), 1))


class Requests:
    """A dispatch of which each request is one sequence with a prompt of its own."""

    def __init__(self) -> None:
        self.life = Life()
        self.dispatch = Dispatch(cast(Any, self.life))
        self.clients: dict[str, Client] = {}

    def ask(self, ids: Iterable[str]) -> None:
        for id in ids:
            client = Client()
            self.dispatch.generate([submit(id)], client)
            self.clients[id] = client

    def give_token(self, id: str) -> None:
        self.dispatch.put(Output(id, [1]))

    def sent(self) -> list[str]:
        return [each if isinstance(each, str) else each[0] for each in self.life.taken()]

    def die(self) -> list[str]:
        """What the next worker is sent at once."""
        self.life.taken()
        self.dispatch.worker_died()
        self.dispatch.send_all()
        return self.sent()

    @property
    def failed(self) -> set[str]:
        return {id for id, client in self.clients.items() if client.error is not None}


def submit(id: str, seed: int = 0) -> Submit:
    return Submit(id, [ord(id)], SamplingParams(max_tokens=9, seed=seed))


def test_another_worker_goes_on_where_each_sequence_was() -> None:
    life, dispatch, client = setting()
    dispatch.generate(submits("a", "b"), client)
    dispatch.put(Output("a", [5, 6], finish_reason=None))
    life.taken()
    dispatch.worker_died()
    dispatch.send_all()
    assert life.taken() == [("a", [5, 6]), ("b", [])]
    assert client.error is None


def test_after_one_death_everything_goes_on_at_once() -> None:
    requests = Requests()
    requests.ask("abc")
    assert requests.die() == ["a", "b", "c"]
    requests.ask("d")
    assert requests.sent() == ["d"]


def test_what_was_there_twice_is_tried_alone_and_then_beside_what_was_not() -> None:
    requests = Requests()
    requests.ask("abc")
    requests.die()
    requests.ask("d")
    assert requests.die() == ["c"], "the latest of those that saw two deaths"
    requests.ask("e")
    assert requests.sent() == [], "it is alone"
    requests.give_token("c")
    assert requests.sent() == ["d", "e", "b"], "a token proves that it kills nobody"
    requests.ask("f")
    assert requests.sent() == ["f"], "nothing waits for suspects that are tried beside it"
    requests.give_token("d")
    assert requests.sent() == []
    requests.dispatch.abandon("b")
    assert requests.sent() == ["a", "b"], "an abort, and the next suspect"


def test_a_suspect_that_leaves_makes_room_for_the_rest() -> None:
    requests = Requests()
    requests.ask("ab")
    requests.die()
    assert requests.die() == ["b"]
    requests.ask("c")
    requests.dispatch.abandon("b")
    assert set(requests.sent()) == {"a", "b", "c"}


def test_only_deaths_alone_convict() -> None:
    requests = Requests()
    requests.ask("ab")
    assert requests.die() == ["a", "b"]
    assert requests.die() == ["b"]
    assert requests.die() == ["b"], "alone once"
    assert not requests.failed
    assert requests.die() == ["a"], "alone twice"
    assert requests.failed == {"b"}
    with pytest.raises(RequestError) as caught:
        requests.ask("b")
    assert (caught.value.status, caught.value.code) == (422, "request_given_up")
    requests.give_token("a")
    assert requests.die() == ["a"]
    assert requests.die() == ["a"], "two deaths do not convict, although it was alone"
    assert requests.failed == {"b"}


def test_two_deaths_convict_nobody_who_was_alone() -> None:
    requests = Requests()
    requests.ask("a")
    for _ in range(20):
        requests.die()
        requests.die()
        requests.give_token("a")
    assert not requests.failed


def test_what_a_worker_never_got_is_not_to_blame() -> None:
    requests = Requests()
    requests.ask("a")
    for _ in range(5):
        requests.life.serving = False  # it dies while it loads
        requests.dispatch.worker_died()
    requests.life.serving = True
    requests.dispatch.send_all()
    assert requests.die() == ["a"]
    assert not requests.failed


def test_many_that_are_given_up_in_a_row_do_not_explain_more_deaths() -> None:
    requests = Requests()
    explained = []
    for id in "abcdefghij":
        requests.ask(id)
        for _ in range(3):
            explained.append(requests.dispatch.worker_died())
            requests.dispatch.send_all()
    assert requests.failed == set("abcdefghij")
    assert explained[:24] == [False, True, True] * 8
    assert not any(explained[26:])


def test_requests_are_known_for_a_while_whatever_their_seed() -> None:
    now = [0.0]
    given_up = RecentRequests(clock=lambda: now[0])
    assert submit("a") not in given_up
    given_up.add(submit("a", seed=1))
    assert submit("a", seed=2) in given_up
    assert submit("b") not in given_up
    assert Submit("a", [ord("a")], SamplingParams(max_tokens=3, seed=1)) not in given_up
    now[0] = KEPT_SECONDS
    assert submit("a") not in given_up


def test_no_more_requests_are_kept_than_a_limit() -> None:
    given_up = RecentRequests()
    for number in range(KEPT + 5):
        given_up.add(Submit("x", [number], SamplingParams(max_tokens=9)))
    assert Submit("x", [4], SamplingParams(max_tokens=9)) not in given_up
    assert Submit("x", [5], SamplingParams(max_tokens=9)) in given_up


def test_totals_do_not_fall_when_a_worker_dies() -> None:
    totals = Totals()
    totals.take(Stats(running=3, blocks_used=4, blocks_total=9, steps_total=10))
    totals.worker_died()
    assert totals.stats == Stats(steps_total=10)
    totals.take(Stats(running=1, blocks_used=2, blocks_total=9, steps_total=5))
    assert totals.stats == Stats(running=1, blocks_used=2, blocks_total=9, steps_total=15)

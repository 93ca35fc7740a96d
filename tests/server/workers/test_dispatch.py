"""Who is admitted, and what another worker gets after a death; without a worker."""

import asyncio
from typing import Any, cast

import pytest

from engine.errors import EngineError, RequestError
from engine.protocol import Abort, Output, Ready, SamplingParams, Stats, Submit
from engine.server.workers.dispatch import Dispatch
from engine.server.workers.totals import Totals

PARAMS = SamplingParams(max_tokens=9, seed=1)


class Life:
    """A worker that is told things."""

    serving = True
    ready = Ready(num_blocks=9, max_tokens=1600, max_batch_tokens=64, max_num_seqs=2)

    def __init__(self) -> None:
        self.sent: list[Any] = []

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
    return life, Dispatch(cast(Any, life), max_queue=max_queue), Client()


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


def test_a_queue_has_room_for_so_many() -> None:
    _, dispatch, client = setting(max_queue=1)
    with pytest.raises(RequestError, match="4 sequences in one request") as too_many:
        dispatch.generate(submits("a", "b", "c", "d"), client)
    assert too_many.value.code == "too_many_sequences"
    dispatch.generate(submits("a", "b"), client)
    with pytest.raises(RequestError, match="no more than 3 may") as full:
        dispatch.generate(submits("c", "d"), client)
    assert full.value.status == 503
    assert dispatch.live == 2


def another_worker(life: Life, dispatch: Dispatch) -> list[Any]:
    """What the next worker is sent after the death of this one."""
    life.serving = False
    dispatch.drop_suspect()
    life.serving = True
    life.taken()
    dispatch.send_again()
    return life.taken()


def test_another_worker_gets_one_after_the_other_from_where_each_was() -> None:
    life, dispatch, client = setting()
    dispatch.generate(submits("a", "b", "c"), client)
    dispatch.put(Output("a", [5, 6], finish_reason=None))
    assert another_worker(life, dispatch) == [("a", [5, 6])]
    dispatch.generate(submits("d"), client)
    assert life.taken() == []
    dispatch.put(Output("a", [7], finish_reason=None))
    assert life.taken() == [("b", [])]
    dispatch.abandon("c")
    dispatch.put(Output("b", [1], finish_reason=None))
    assert life.taken() == ["c", ("d", [])]
    assert client.error is None


def test_a_sequence_that_a_second_worker_dies_of_is_dropped() -> None:
    life, dispatch, client = setting()
    dispatch.generate(submits("a", "b"), client)
    assert another_worker(life, dispatch) == [("a", [])]
    assert another_worker(life, dispatch) == [("b", [])]
    assert isinstance(client.error, RequestError)
    assert client.error.code == "worker_died"
    assert dispatch.sequences == 1


def test_totals_do_not_fall_when_a_worker_dies() -> None:
    totals = Totals()
    totals.take(Stats(running=3, blocks_used=4, blocks_total=9, steps_total=10))
    totals.worker_died()
    assert totals.stats == Stats(steps_total=10)
    totals.take(Stats(running=1, blocks_used=2, blocks_total=9, steps_total=5))
    assert totals.stats == Stats(running=1, blocks_used=2, blocks_total=9, steps_total=15)

"""Several workers of one server: who gets what, who goes on when one dies, how the machine is shared."""

import asyncio
import os
import signal
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from artifact_stand_in import edit_manifest, write_artifact
from patience import wait_until
from serving_process import ServingProcess

from engine import cpus
from engine.errors import EngineError, RequestError, UsageError, WorkerError
from engine.protocol import Output, Ready, SamplingParams, Stats, Submit
from engine.server.options import ServeOptions
from engine.server.workers import replicas
from engine.server.workers.dispatch import SEQUENCE_LOAD, Dispatch
from engine.server.workers.fleet import Fleet
from engine.server.workers.life import shutting_down
from engine.server.workers.progress import Progress
from engine.server.workers.recent_requests import RecentRequests
from engine.server.workers.replicas import options_of_replicas
from engine.server.workers.totals import Totals

SLOW = ("--step", "0.005")
ENDLESS: dict[str, Any] = {"prompt": "a b c d e f g", "temperature": 0, "ignore_eos": True, "max_tokens": 200}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "artifact")


class Life:
    """A worker that is told things."""

    def __init__(self, max_tokens: int) -> None:
        self.state = "ready"
        self.serving = True
        self.ended = False
        self.restarts = 0
        self.ready = Ready(num_blocks=9, max_tokens=max_tokens, max_batch_tokens=64, max_num_seqs=2)
        self.progress = Progress()
        self.sent: list[Any] = []

    def check_open(self) -> None:
        if self.state != "ready":
            raise shutting_down()

    async def until_ready(self) -> Ready:
        if not self.serving:
            await asyncio.sleep(100)
        return self.ready

    def last_phase(self) -> str:
        return "weights"

    def send(self, message: Any) -> None:
        self.sent.append(message)


class Replica:
    """failure: with which it gives up."""

    def __init__(self, max_tokens: int, given_up: RecentRequests, failure: EngineError | None = None) -> None:
        self.life = Life(max_tokens)
        self.dispatch = Dispatch(cast(Any, self.life), given_up)
        self.totals = Totals()
        self.failure = failure

    @property
    def is_well(self) -> bool:
        return self.life.state == "ready"

    async def run(self) -> None:
        if self.failure is not None:
            raise self.failure
        await asyncio.sleep(0.01)

    def ids(self) -> list[str]:
        return [each.id for each in self.life.sent if isinstance(each, Submit)]


class Client:
    def put(self, output: Output) -> None:
        pass

    def fail(self, error: EngineError) -> None:
        raise AssertionError


def fleet(count: int = 2, max_queue: int | None = None, **settings: Any) -> tuple[Fleet, list[Replica]]:
    given_up = RecentRequests()
    found = [Replica(1600 - number, given_up, **settings) for number in range(count)]
    return Fleet(cast(Any, found), max_queue=max_queue), found


def submits(ids: Iterable[str], tokens: int = 1) -> list[Submit]:
    return [Submit(id, [ord(id[0])] * tokens, SamplingParams(max_tokens=9, seed=1)) for id in ids]


def test_requests_are_shared_out_and_outputs_go_to_who_asked() -> None:
    workers, (first, second) = fleet()
    client = Client()
    workers.generate(submits("ab"), client)
    workers.generate(submits("cd"), client)
    assert (first.ids(), second.ids()) == (["a", "c"], ["b", "d"])
    assert (workers.sequences, workers.live) == (4, 4)
    for id in "abxa":
        workers.abandon(id)
    assert (first.dispatch.sequences, second.dispatch.sequences) == (1, 1)
    workers.generate(submits("e"), client)
    assert first.ids()[-1] == "e"


def test_a_load_is_what_is_not_computed_yet() -> None:
    workers, (first, second) = fleet()
    workers.generate(submits(["a"], 640), Client())
    assert first.dispatch.load == 640 + SEQUENCE_LOAD
    workers.generate(submits(["b"], 640), Client())
    assert second.ids() == ["b"]
    first.dispatch.put(Output("a", [7]))
    assert first.dispatch.load == SEQUENCE_LOAD
    workers.generate(submits(["a2"], 640), Client())
    assert first.ids() == ["a", "a2"], "which is where its beginning is cached"
    assert first.dispatch.load == 2 * SEQUENCE_LOAD + 1


def test_a_worker_that_died_has_no_prefixes() -> None:
    workers, (first, second) = fleet()
    workers.generate([*submits(["a"], 640), *submits(["b"], 640)], Client())
    first.life.restarts = 1
    workers.abandon("a")
    workers.abandon("b")
    workers.generate(submits(["b2"], 640), Client())
    workers.generate(submits(["a2"], 640), Client())
    assert second.ids() == ["b", "b2"]
    assert first.dispatch.load == 640 + SEQUENCE_LOAD


def test_a_worker_that_is_not_well_gets_nothing_new() -> None:
    workers, (first, second) = fleet()
    first.life.state, first.life.serving = "restarting", False
    workers.generate(submits("abc"), Client())
    assert second.ids() == ["a", "b", "c"]
    second.life.state, second.life.ended, second.life.serving = "stopped", True, False
    with pytest.raises(RequestError, match="shutting down"):
        workers.generate(submits("d"), Client())
    assert first.ids() == []


def test_the_queue_is_of_all_together() -> None:
    workers, _ = fleet(max_queue=1)
    with pytest.raises(RequestError, match="6 sequences in one request, but this server takes 5") as too_many:
        workers.generate(submits("abcdef"), Client())
    assert too_many.value.code == "too_many_sequences"
    workers.generate(submits("abc"), Client())
    with pytest.raises(RequestError, match="no more than 5 may") as full:
        workers.generate(submits("def"), Client())
    assert full.value.status == 503
    assert workers.sequences == 3, "all or none"
    workers.generate(submits("de"), Client())


def test_whoever_is_refused_is_told_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    workers, _ = fleet(max_queue=0)
    client = Client()

    def refusal(ids: str) -> float | None:
        with pytest.raises(RequestError, match="no more than 4 may") as full:
            workers.generate(submits(ids), client)
        return full.value.retry_after

    workers.generate(submits("abcd"), client)
    assert refusal("e") is None, "nothing has ended yet"
    for number in range(5):  # one every four seconds
        workers.abandon("abcdx"[number])
        now += 4
        if number < 4:
            workers.generate(submits("wxyz"[number]), client)
    workers.generate(submits("u"), client)
    assert refusal("e") == pytest.approx(4.0)
    assert refusal("efg") == pytest.approx(12.0)
    now += 1000
    assert refusal("efg") == 60.0


def test_what_kills_one_worker_after_the_other_is_given_to_none() -> None:
    workers, (first, _) = fleet()
    first.dispatch._given_up.add(submits("a")[0])
    with pytest.raises(RequestError, match="ended every worker"):
        workers.generate(submits("ba"), Client())
    assert workers.sequences == 0


def test_what_all_can_take_is_known_as_soon_as_one_is_ready() -> None:
    workers, (first, _) = fleet()
    assert asyncio.run(workers.hold(1)).max_tokens == 1599
    first.life.serving = False
    assert asyncio.run(asyncio.wait_for(workers.until_ready(), 5)).max_tokens == 1599


def test_waiting_for_workers_has_an_end_and_room_for_so_many() -> None:
    workers, found = fleet(max_queue=0)
    for replica in found:
        replica.life.serving, replica.life.ready = False, cast(Any, None)
    with pytest.raises(RequestError, match="no more than 0 may"):
        asyncio.run(workers.hold(0.01))
    workers, found = fleet()
    for replica in found:
        replica.life.serving = False
    with pytest.raises(RequestError, match=r"still loading \(weights\)"):
        asyncio.run(workers.hold(0.01))
    assert workers.live == 0


def test_figures_are_those_of_all_workers() -> None:
    workers, (first, second) = fleet()
    first.totals.take(Stats(running=1, blocks_used=2, blocks_total=10, steps_total=3, step_tokens=4, step_seconds=0.5))
    second.totals.take(Stats(running=2, blocks_used=5, blocks_total=10, steps_total=4, step_tokens=9, step_seconds=0.1))
    assert workers.stats == Stats(running=3, blocks_used=7, blocks_total=20, steps_total=7, step_tokens=4, step_seconds=0.5)


def test_a_replica_that_cannot_be_kept_running_is_left_out() -> None:
    lines: list[str] = []
    error = WorkerError("no memory", hint="buy some")
    given_up = RecentRequests()
    sick, healthy = Replica(100, given_up, error), Replica(100, given_up)
    asyncio.run(Fleet(cast(Any, [sick, healthy]), max_queue=None, log=lines.append).run())
    assert lines == [f"ERROR: replica 0 is given up, 1 serve on: {error}"]
    with pytest.raises(WorkerError, match="no memory"):
        asyncio.run(Fleet(cast(Any, [sick, sick]), max_queue=None).run())


# --- how the machine is shared --------------------------------------------------------------


def test_shares_of_threads_memory_and_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "usable_cpus", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(replicas, "shares_of", lambda cpus, count: [[0, 2], [1, 3]])
    first, second = options_of_replicas(ServeOptions(artifacts=Path("a"), replicas=2, threads=5, kv_memory=1001))
    assert [(each.workers, each.cpus, each.threads, each.kv_memory) for each in (first, second)] == [(2, "0,2", 2, 500), (2, "1,3", 2, 500)]
    (only,) = options_of_replicas(ServeOptions(artifacts=Path("a"), threads=5))
    assert (only.workers, only.cpus, only.threads) == (1, None, 5)


@pytest.mark.parametrize(
    ("count", "threads", "kv_memory", "message"),
    [(4097, None, None, "CPUs that may be used"), (2, 1, None, "--threads"), (2, None, 1, "--kv-memory")],
)
def test_more_replicas_than_there_is_to_share(
    count: int, threads: int | None, kv_memory: int | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "usable_cpus", lambda: {0, 1})
    with pytest.raises(UsageError, match=message):
        options_of_replicas(ServeOptions(artifacts=Path("a"), replicas=count, threads=threads, kv_memory=kv_memory))


# --- over HTTP ------------------------------------------------------------------------------

needs_two = pytest.mark.skipif(len(cpus.usable_cpus()) < 2, reason="two workers want two CPUs")


def whole_text(server: ServingProcess, **fields: Any) -> str:
    answer = server.http.post("/v1/completions", json={**ENDLESS, **fields})
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def metrics(server: ServingProcess) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in server.http.get("/metrics").text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


@needs_two
def test_two_workers_serve_one_model(artifact: Path) -> None:
    with ServingProcess(artifact, *SLOW, replicas=2, threads=2, kv_memory=2**20) as server, ThreadPoolExecutor(4) as pool:
        started = [server.event("started") for _ in range(2)]
        wait_until(lambda: server.http.get("/health").json().get("well") == 2)
        assert server.http.get("/health").json() == {"status": "ok", "replicas": 2, "well": 2}
        flags = [dict(zip(each["argv"][::2], each["argv"][1::2], strict=False)) for each in started]
        shares = cpus.shares_of(cpus.usable_cpus(), 2)
        assert {each["--cpus"] for each in flags} == {",".join(map(str, share)) for share in shares}
        assert [(each["--workers"], each["--threads"], each["--kv-memory"]) for each in flags] == [("2", "1", str(2**19))] * 2
        expected = whole_text(server)
        asked = [pool.submit(whole_text, server) for _ in range(4)]
        wait_until(lambda: metrics(server)["engine_num_requests_running"] == 4)
        told = metrics(server)
        assert (told['engine_replica_sequences{replica="0"}'], told['engine_replica_sequences{replica="1"}']) == (2, 2)
        assert told["engine_replicas_ready"] == 2
        assert [each.result() for each in asked] == [expected] * 4


@needs_two
def test_a_replica_that_is_killed_costs_its_streams_a_pause(artifact: Path) -> None:
    with ServingProcess(artifact, *SLOW, replicas=2) as server, ThreadPoolExecutor(6) as pool:
        pids = [server.event("started")["pid"] for _ in range(2)]
        wait_until(lambda: server.http.get("/health").json().get("well") == 2)
        expected = whole_text(server)
        asked = [pool.submit(whole_text, server) for _ in range(6)]
        wait_until(lambda: metrics(server)["engine_num_requests_running"] == 6)
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda: metrics(server)["engine_worker_restarts_total"] == 1)
        assert server.http.get("/health").status_code == 200, "the other one serves"
        assert [each.result() for each in asked] == [expected] * 6
        server.line_with(r"replica [01]: the worker was killed by SIGKILL.*; starting another, 3 sequences will go on")
        wait_until(lambda: server.http.get("/health").json()["well"] == 2)


@needs_two
def test_replicas_on_a_gpu_are_refused(artifact: Path) -> None:
    edit_manifest(artifact, lambda content: content.update(target="sm90"))
    server = ServingProcess(artifact, replicas=2)
    with pytest.raises(AssertionError, match="no line like"), server:
        server.ready()
    assert server.process.returncode == UsageError.exit_code
    assert "--replicas is for artifacts for CPUs, and this one is for sm90" in server.log()


@needs_two
def test_what_is_running_is_finished_before_the_end(artifact: Path) -> None:
    with ServingProcess(artifact, *SLOW, replicas=2) as server, ThreadPoolExecutor(4) as pool:
        wait_until(lambda: server.http.get("/health").json().get("well") == 2)
        expected = whole_text(server)
        asked = [pool.submit(whole_text, server) for _ in range(4)]
        wait_until(lambda: metrics(server)["engine_num_requests_running"] == 4)
        server.process.send_signal(signal.SIGTERM)
        assert [each.result() for each in asked] == [expected] * 4
        assert server.rest() == 0

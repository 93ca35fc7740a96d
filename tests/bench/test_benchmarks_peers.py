"""benchmarks/peers with stand-ins for peers: what is believed, what is compared, how sessions fail. Nothing is installed."""

import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkout import ROOT
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel

from engine.bench.metrics import summarize
from engine.bench.stream import Result
from engine.bench.workload import Request

BENCHMARKS = ROOT / "benchmarks"
FIRST = Request("first", 1, 1)


@pytest.fixture(scope="module")
def peers() -> Iterator[Any]:
    """`peers.NAME` is the module NAME of the folder, which is a program and no part of the package."""

    class Peers:
        def __getattr__(self, name: str) -> Any:
            return import_module(f"peers.{name}")

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield Peers()


def run_of(peers: Any, tokens: int, seconds: float, others: float = 0.0, speed: float = 1.0) -> Any:
    """A run of one request whose tokens came evenly, the first at once."""
    times = [seconds * (number + 1) / tokens for number in range(tokens)]
    result = Result(8, tokens, 0.0, times, seconds, wanted_tokens=tokens)
    return peers.measure.Run(summary=summarize([result], seconds), others=others, speed=speed)


def measured(peers: Any, peer: str, weights: str, *, rates: list[float], start_s: float, **more: Any) -> Any:
    runs = [run_of(peers, 100, 100 / rate) for rate in rates]
    starts = [peers.measure.Start(first_token_s=start_s, others=0.0, speed=1.0)]
    kind = {"four_bits": False, "same_file": False, "setting": "", "over_http": True}
    return peers.measure.Measured(peer=peer, weights=weights, starts=starts, throughput={8: runs}, **{**kind, **more})


def cells(table: Any, row: str) -> dict[str, str]:
    (found,) = [line for line in table.rows if line[0] == row]
    return dict(zip(table.columns, found, strict=True))


def test_ratios_say_how_many_times_better_engine_is(peers: Any) -> None:
    ours = measured(peers, "Engine", "Q4_1", rates=[90.0, 100.0, 300.0], start_s=1.0)
    same = measured(peers, "a", "Q4_1", rates=[40.0], start_s=0.5, four_bits=True, same_file=True)
    small = measured(peers, "b", "int4", rates=[50.0], start_s=4.0, four_bits=True)
    large = measured(peers, "c", "fp32", rates=[80.0], start_s=2.0)
    figures, ratios = peers.table.tables([ours, same, small, large], {})
    column, start = "output of 8 clients", "exec to first token"
    assert cells(figures, "Engine Q4_1")[f"{column}, tok/s"] == "100.0 (90.0-300.0)"
    assert [cells(ratios, row)[column] for row in ("a Q4_1", "best with the same file", "best at 4 bits", "best of all")] == [
        "2.50",
        "2.50",
        "2.00",
        "1.25",
    ]
    assert [cells(ratios, row)[start] for row in ("a Q4_1", "b int4", "best of all")] == ["0.50", "4.00", "0.50"]
    assert cells(ratios, "a Q4_1")["decode alone"] == "-"


def test_without_engine_there_are_no_ratios(peers: Any) -> None:
    assert len(peers.table.tables([measured(peers, "a", "Q4_1", rates=[40.0], start_s=0.5)], {})) == 1


def test_decode_counts_tokens_after_the_first(peers: Any) -> None:
    one = measured(peers, "a", "Q4_1", rates=[1.0], start_s=1.0, single=run_of(peers, 5, 1.0))
    (decode,) = [measure for measure in peers.measures.MEASURES if measure.name == "decode alone"]
    assert decode.median(one) == pytest.approx(5.0)  # 4 tokens in the last 0.8 s


def test_warnings_name_failures_and_disturbed_runs(peers: Any) -> None:
    calm = measured(peers, "a", "x", rates=[1.0], start_s=1.0)
    disturbed = measured(peers, "b", "y", rates=[1.0], start_s=1.0, ttft=run_of(peers, 2, 1.0, others=0.2, speed=0.5), error="fell over")
    found = peers.table.warnings([calm, disturbed], {"c": "no wheel"})
    assert [line.split(":")[0] for line in found] == ["c is missing", "b y is incomplete", "b y", "b y"]
    assert "20%" in found[2]
    assert "50%" in found[3]


def test_quietest_stops_at_the_first_run_left_alone(peers: Any) -> None:
    shares = [0.5, 0.01, 0.0]
    taken: list[int] = []

    def take(attempt: int) -> Any:
        taken.append(attempt)
        return run_of(peers, 2, 1.0, others=shares[attempt])

    assert peers.measure.quietest(take, 3).others == 0.01
    assert taken == [0, 1]


def test_quietest_takes_the_least_disturbed_if_none_was_left_alone(peers: Any) -> None:
    shares = [0.5, 0.1, 0.3]
    assert peers.measure.quietest(lambda attempt: run_of(peers, 2, 1.0, others=shares[attempt]), 3).others == 0.1


def test_quietest_waits_for_the_whole_machine(peers: Any) -> None:
    speeds = [0.5, 1.0]
    assert peers.measure.quietest(lambda attempt: run_of(peers, 2, 1.0, speed=speeds[attempt]), 2).speed == 1.0


def test_pace_is_relative_to_the_best_it_has_seen(peers: Any) -> None:
    rates = iter([90.0, 100.0, 80.0, 95.0, 70.0, 50.0, 200.0, 100.0])
    pace = peers.pace.Pace(lambda: next(rates))
    assert [pace() for _ in range(3)] == [0.5, 1.0, 0.5]


def test_others_share_leaves_out_our_own_time(peers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    time_at = peers.others.CpuTime
    assert peers.others.others_share(time_at(0.0, 5.0, 1.0), time_at(10.0, 21.0, 13.0)) == pytest.approx(0.2)
    assert peers.others.others_share(time_at(0.0, 5.0, 1.0), time_at(10.0, 6.0, 2.1)) == 0.0


def test_own_time_holds_that_of_children_that_have_ended(peers: Any) -> None:
    before = peers.others.CpuTime.now()
    code = "import time\nwhile time.process_time() < 0.3: pass"
    peers.environment.run([sys.executable, "-c", code])
    after = peers.others.CpuTime.now()
    assert after.own_s - before.own_s >= 0.29
    assert after.busy_s - before.busy_s >= 0.29


def test_cuda_packages_are_found_in_a_plan(peers: Any) -> None:
    plan = {"install": [{"metadata": {"name": name}} for name in ("torch", "nvidia-cublas", "NVIDIA-nccl-cu13", "nvidianot")]}
    assert peers.environment.cuda_packages(plan) == ["nvidia-cublas", "NVIDIA-nccl-cu13"]


def test_a_command_that_fails_says_why(peers: Any) -> None:
    with pytest.raises(peers.environment.PeerError, match="exited with 3:\nno such model"):
        peers.environment.run([sys.executable, "-c", "import sys; print('no such model', file=sys.stderr); sys.exit(3)"])


RUNNER = """
    from peers.runners.answering import serve

    def do(job):
        print("noise of a library")
        for answer in job.answers:
            if answer.prompt == "break":
                raise RuntimeError("broken")
            answer.start()
            answer.prompt_tokens = len(answer.prompt)
            for token in range(answer.wanted_tokens):
                answer.take([token])
            if answer.prompt != "cut":
                answer.finish()

    serve(do, lambda tokens: " ".join(map(str, tokens)))
"""


def library(peers: Any, folder: Path, code: str) -> Any:
    (folder / "runner.py").write_text(textwrap.dedent(code))
    return peers.session.Library(command=(sys.executable, str(folder / "runner.py")), variables={"PYTHONPATH": str(BENCHMARKS)})


def test_a_library_answers_through_its_runner(peers: Any, tmp_path: Path) -> None:
    session = library(peers, tmp_path, RUNNER).start(FIRST, tmp_path / "log")
    try:
        done, cut = session.run([Request("abc", 3, 4), Request("cut", 3, 2)], concurrency=2, time_limit_s=60)
        assert (done.prompt_tokens, done.output_tokens, done.wanted_tokens, done.text) == (3, 4, 4, "0 1 2 3")
        assert done.completed
        assert cut.cut
        assert 0 < done.start_s <= done.token_times_s[0] <= done.token_times_s[-1] <= done.end_s
        assert session.first_token_s > 0
        with pytest.raises(peers.environment.PeerError, match="the runner failed"):
            session.run([Request("break", 1, 1)], concurrency=1, time_limit_s=60)
    finally:
        session.stop()
    assert "noise of a library" in (tmp_path / "log").read_text()


def test_a_library_that_cannot_load_says_why(peers: Any, tmp_path: Path) -> None:
    with pytest.raises(peers.environment.PeerError, match="no weights here"):
        library(peers, tmp_path, "raise SystemExit('no weights here')").start(FIRST, tmp_path / "log")


SERVER = """
    import json, sys
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        asked = 0

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            Handler.asked += 1
            self.send_response(503 if Handler.asked < 3 else STATUS)
            self.end_headers()
            if Handler.asked >= 3:
                for event in ({"choices": [{"text": json.dumps(body)}]}, {"choices": [{"text": "", "finish_reason": "length"}]}):
                    self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")
                self.wfile.write(b"data: [DONE]\\n\\n")

    HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def server(peers: Any, folder: Path, code: str, **more: Any) -> Any:
    (folder / "server.py").write_text(textwrap.dedent(code))
    return peers.session.Server(command=(sys.executable, str(folder / "server.py"), "{port}"), **more)


def test_a_server_is_asked_again_while_it_loads(peers: Any, tmp_path: Path) -> None:
    code = SERVER.replace("STATUS", "200")
    session = server(peers, tmp_path, code, body={"extra": 1}, exact_body={"min_tokens": 9}).start(FIRST, tmp_path / "log")
    try:
        (exact,) = session.run([Request("x", 1, 1)], concurrency=1, time_limit_s=60)
        (free,) = session.run([Request("x", 1, 1)], concurrency=1, time_limit_s=60, exact=False)
    finally:
        session.stop()
    assert '"ignore_eos": true' in exact.text
    assert '"min_tokens": 9' in exact.text
    assert "ignore_eos" not in free.text
    assert "min_tokens" not in free.text
    assert '"extra": 1' in free.text


@pytest.mark.parametrize(("code", "reason"), [(SERVER.replace("STATUS", "404"), "HTTP 404"), ("raise SystemExit('no port')", "no port")])
def test_a_server_that_will_never_answer_fails_at_once(peers: Any, tmp_path: Path, code: str, reason: str) -> None:
    with pytest.raises(peers.environment.PeerError, match=reason):
        server(peers, tmp_path, code).start(FIRST, tmp_path / "log")


class Scripted:
    """A subject's setting and its session at once: answers are `text`, of `missing` tokens too few."""

    def __init__(self, text: str, missing: int) -> None:
        self.text, self.missing = text, missing
        self.pid = os.getpid()
        self.first_token_s = 0.5
        self.asked: list[tuple[int, int]] = []
        self.running = 0

    def start(self, first: Request, log: Path) -> "Scripted":
        self.running += 1
        return self

    def run(self, requests: Sequence[Request], *, concurrency: int, time_limit_s: float, exact: bool = True) -> list[Result]:
        self.asked.append((len(requests), concurrency))
        return [self._answer(request, request.max_tokens - (self.missing if exact else 0)) for request in requests]

    def _answer(self, request: Request, tokens: int) -> Result:
        times = [0.1 * (number + 1) for number in range(tokens)]
        return Result(request.prompt_tokens, tokens, 0.0, times, times[-1], text=self.text, wanted_tokens=request.max_tokens)

    def stop(self) -> None:
        self.running -= 1


def measure(peers: Any, tmp_path: Path, peer: Scripted, **of_load: Any) -> Any:
    tokenizer = Tokenizer(
        WordLevel({f"Ġ{a}{b}": i for i, (a, b) in enumerate(product("abcdefghij", repeat=2))} | {"?": 100}, unk_token="?")
    )
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    load = replace(peers.load.Load.tiny(), **of_load)
    prompts = peers.load.Prompts(tokenizer, SimpleNamespace(render_chat=lambda messages: "a chat"), load)
    subject = peers.subject.Subject(peer="p", weights="w", open=lambda room: peer)
    return peers.measure.measure(subject, prompts, load, peers.load.PHASES, tmp_path, lambda: 1.0)


def test_a_peer_goes_through_every_phase(peers: Any, tmp_path: Path) -> None:
    peer = Scripted("It is Paris.", missing=0)
    found = measure(peers, tmp_path, peer)
    assert found.error is None
    assert (found.answer, [start.first_token_s for start in found.starts]) == ("It is Paris.", [0.5])
    assert [run.summary.completed for runs in found.throughput.values() for run in runs] == [8, 8]
    assert peer.asked == [(1, 1), (1, 1), (1, 1), (8, 8), (8, 8), (32, 32), (8, 32)]
    assert found.peak_memory > 0
    assert peer.running == 0


def test_random_weights_are_asked_no_question_and_only_the_loads_that_are_wanted(peers: Any, tmp_path: Path) -> None:
    peer = Scripted("garbage", missing=0)
    found = measure(peers, tmp_path, peer, question=False, concurrency=(8,))
    assert found.error is None
    assert peer.asked == [(1, 1), (1, 1), (8, 8), (8, 8)]
    assert [*found.throughput] == [8]


def test_random_weights_must_do_the_work_all_the_same(peers: Any, tmp_path: Path) -> None:
    assert "15 tokens came where 16" in measure(peers, tmp_path, Scripted("garbage", missing=1), question=False).error


def test_only_the_weights_that_are_wanted_are_made(peers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(peers.llama_cpp, "_requantize", lambda place, kind: made.append(kind))
    programs = tmp_path / "llama.cpp" / "build" / "bin"
    programs.mkdir(parents=True)
    for name in ("llama-server", "llama-quantize"):
        (programs / name).touch()
    (tmp_path / "llama.cpp" / "llama_cpp_python-1.2.tar.gz").touch()
    (tmp_path / "llama.cpp" / "llama_cpp_python-1.2").mkdir()
    for weights, expected in ((None, ["Q4_0", "Q8_0", "F16", "BF16"]), (("Q4_K", "F16"), ["F16"])):
        place = peers.subject.Place(artifacts=tmp_path, gguf=tmp_path / "m.Q4_K.gguf", work=tmp_path, threads=1, weights=weights)
        made.clear()
        assert peers.llama_cpp.install(place) == {"llama-cpp-python": "1.2"}
        assert made == expected


@pytest.mark.parametrize(("text", "missing", "reason"), [("Rome", 0, "answers 'Rome'"), ("Paris", 1, "15 tokens came where 16")])
def test_a_peer_that_does_not_do_the_work_is_not_measured(peers: Any, tmp_path: Path, text: str, missing: int, reason: str) -> None:
    peer = Scripted(text, missing)
    found = measure(peers, tmp_path, peer)
    assert reason in found.error
    assert found.single is None
    assert peer.running == 0

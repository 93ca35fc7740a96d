"""How sequences end, and that a bad request harms nobody else."""

import subprocess
import sys
from pathlib import Path

import pytest
from fake_executor import FakeExecutor, solo, tiny_manifest

from engine.options.runtime import RuntimeOptions
from engine.protocol import SamplingParams, Submit, TokenRules
from engine.runtime.core import EngineCore

VOCAB = 32


def make_core(*, eos: tuple[int, ...] = (), poison: int | None = None, num_blocks: int = 16, vocab_size: int = VOCAB) -> EngineCore:
    executor = FakeExecutor(num_blocks=num_blocks, manifest=tiny_manifest(vocab_size=vocab_size), poison=poison)
    return EngineCore(executor, RuntimeOptions(max_num_seqs=8, max_batch_tokens=64), eos_token_ids=eos)


def run(core: EngineCore) -> dict[str, tuple[list[int], str | None, str | None]]:
    """Tokens, finish_reason and error of every id."""
    ended: dict[str, tuple[list[int], str | None, str | None]] = {}
    while core.has_work():
        for output in core.step().outputs:
            before = ended.get(output.id, ([], None, None))[0]
            ended[output.id] = (before + output.tokens, output.finish_reason, output.error)
        core.check()
    return ended


PROMPT = [1, 2, 3]
GREEDY = SamplingParams(max_tokens=10, temperature=0.0)
ANSWER = solo(PROMPT, GREEDY)


def params(**changes: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 10, "temperature": 0.0, **changes})  # type: ignore[arg-type]


def test_end_of_text_ends_and_is_reported() -> None:
    core = make_core(eos=(ANSWER[4],))
    core.submit(Submit("a", PROMPT, GREEDY))
    assert run(core)["a"] == (ANSWER[: ANSWER.index(ANSWER[4]) + 1], "stop", None)


def test_end_of_text_can_be_ignored() -> None:
    core = make_core(eos=(ANSWER[4],))
    core.submit(Submit("a", PROMPT, params(ignore_eos=True)))
    assert run(core)["a"] == (ANSWER, "length", None)


def test_stop_tokens_end_even_when_end_of_text_is_ignored() -> None:
    core = make_core(eos=(ANSWER[1],))
    core.submit(Submit("a", PROMPT, params(ignore_eos=True, stop_token_ids=(ANSWER[5],))))
    assert run(core)["a"] == (ANSWER[: ANSWER.index(ANSWER[5]) + 1], "stop", None)


def test_min_tokens_holds_back_the_end() -> None:
    core = make_core(eos=(ANSWER[0],))
    core.submit(Submit("a", PROMPT, params(min_tokens=3)))
    tokens, reason, _ = run(core)["a"]
    assert len(tokens) > 3 or reason == "length"
    assert ANSWER[0] not in tokens[:3]


def test_logprobs_come_with_every_token() -> None:
    core = make_core()
    core.submit(Submit("a", PROMPT, params(logprobs=2, max_tokens=2)))
    while core.has_work():
        for output in core.step().outputs:
            assert len(output.logprobs) == len(output.tokens) == 1
            assert output.logprobs[0].top[0] == (output.tokens[0], output.logprobs[0].logprob)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [(ANSWER, "length"), (ANSWER[:3], "stop")],
)
def test_a_resumed_sequence_that_was_over_just_ends(sent: list[int], reason: str) -> None:
    core = make_core(eos=(ANSWER[2],) if reason == "stop" else ())
    core.submit(Submit("a", PROMPT, GREEDY, generated=sent))
    assert run(core)["a"] == ([], reason, None)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Submit("bad", [], GREEDY), "empty"),
        (Submit("bad", [1, VOCAB], GREEDY), "token id 32 is outside the vocabulary"),
        (Submit("bad", [-1], GREEDY), "token id -1"),
        (Submit("bad", [1], GREEDY, generated=[99]), "token id 99"),
        (Submit("bad", [1] * 64, GREEDY), "context"),
        (Submit("bad", [1], params(max_tokens=-1)), "max_tokens"),
        (Submit("bad", [1], params(token_rules=TokenRules.of({40: 1.0}))), "logit_bias"),
        (Submit("bad", [1], params(token_rules=TokenRules.of({4: float("nan")}))), "logit_bias"),
        (Submit("bad", [1], params(stop_token_ids=(-5,))), "stop_token_ids"),
        (Submit("bad", [1], params(logprob_token_ids=(40,))), "logprob_token_ids"),
        (Submit("bad", [1], params(token_rules=TokenRules.of({}, [40]))), "allowed_token_ids"),
        (Submit("bad", [1], params(bad_words=((1, 40),))), "bad_words"),
        (Submit("bad", [1], params(temperature=float("nan"))), "temperature"),
        (Submit("bad", [1], params(top_p=1.5)), "top_p"),
        (Submit("bad", [1], params(min_p=-0.1)), "min_p"),
        (Submit("bad", [1], params(top_k=-2)), "top_k"),
        (Submit("bad", [1], params(repetition_penalty=0.0)), "repetition_penalty"),
        (Submit("bad", [1], params(frequency_penalty=float("inf"))), "frequency_penalty"),
        (Submit("bad", [1], params(presence_penalty=float("nan"))), "presence_penalty"),
        (Submit("bad", [1], params(logprobs=-1)), "logprobs"),
        (Submit("bad", [1], params(prompt_logprobs=-1)), "prompt_logprobs"),
        (Submit("bad", [1], params(routed_from=-1)), "routed_experts_start_len"),
    ],
)
def test_a_bad_request_is_answered_and_the_others_go_on(request_: Submit, words: str) -> None:
    core = make_core()
    core.submit(Submit("good", PROMPT, GREEDY))
    core.submit(request_)
    ended = run(core)
    tokens, reason, error = ended["bad"]
    assert (tokens, reason) == ([], "abort")
    assert error is not None
    assert words in error
    assert ended["good"] == (ANSWER, "length", None)


def test_a_prompt_larger_than_the_cache_says_what_helps() -> None:
    core = make_core(num_blocks=2)
    core.submit(Submit("a", [1] * 9, GREEDY))
    _, reason, error = run(core)["a"]
    assert reason == "abort"
    assert error is not None
    assert "9 tokens" in error
    assert "holds 8" in error
    assert "--kv-memory" in error


def test_an_id_in_use_is_refused() -> None:
    core = make_core()
    core.submit(Submit("a", PROMPT, GREEDY))
    core.step()
    core.submit(Submit("a", PROMPT, GREEDY))
    _, reason, error = run(core)["a"]
    assert reason == "abort"
    assert error is not None
    assert "in use" in error


_SMALL = """
import resource, sys
sys.path += [{tests!r}, {support!r}]
import psutil
from test_core import GREEDY, PROMPT, make_core, params, run
from engine.protocol import HEADER_BYTES, Submit, encode
from engine.runtime.process.channel import _decode
core = make_core(vocab_size=300_000)
large = Submit("large", PROMPT, params(stop_token_ids=tuple(range(300_000))))
frame = encode(large)[HEADER_BYTES:]
allowed = psutil.Process().memory_info().vms + (1 << 20)
resource.setrlimit(resource.RLIMIT_AS, (allowed, resource.RLIM_INFINITY))
unreadable = _decode(frame)
core.submit(large)
core.submit(Submit("small", PROMPT, GREEDY))
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
ended = run(core)
print(unreadable)
print(ended["large"])
print(ended["small"][1])
"""


def test_what_memory_does_not_suffice_for_is_refused_and_the_others_go_on() -> None:
    """In a process whose address space ends a little above what it has."""
    here = Path(__file__).parent
    script = _SMALL.format(tests=str(here), support=str(here.parent / "support"))
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    unreadable, large, small = done.stdout.splitlines()
    assert unreadable.startswith("Unreadable(id='large', error='the request needs more memory than the worker may have")
    assert large.startswith("([], 'abort', 'the request needs more memory")
    assert small == "length"


def test_output_that_is_not_finite_ends_its_sequence_only() -> None:
    core = make_core(poison=9)
    core.submit(Submit("good", PROMPT, params(ignore_eos=True, token_rules=TokenRules.of({9: -100.0}))))
    core.submit(Submit("bad", [*PROMPT, 4, 9, 5, 6, 7, 8], GREEDY))
    ended = run(core)
    tokens, reason, error = ended["bad"]
    assert (tokens, reason) == ([], "abort")
    assert error is not None
    assert "not finite" in error
    assert len(ended["good"][0]) == 10
    core.submit(Submit("again", [*PROMPT, 4, 9, 5, 6, 7, 8], GREEDY))
    (output,) = core.step().outputs
    assert output.cached_tokens == 0, "what led to bad output is not reused"


def test_an_exception_of_the_executor_is_not_swallowed() -> None:
    core = make_core()
    core.submit(Submit("a", PROMPT, GREEDY))
    core._executor.step = lambda *_: (_ for _ in ()).throw(RuntimeError("broken"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="broken"):
        core.step()

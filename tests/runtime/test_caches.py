"""Cache groups: what each kind keeps, gives back and finds again, and that sequences over several groups get what they get alone."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest
from fake_executor import FakeExecutor, solo, tiny_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.artifacts import CacheGroup
from engine.options.runtime import RuntimeOptions
from engine.protocol import SamplingParams, Submit
from engine.runtime.caches.caches import Caches
from engine.runtime.caches.chunk import ChunkCache
from engine.runtime.caches.digests import ROOT_DIGEST, block_digest
from engine.runtime.caches.geometry import blocks_for, most_held
from engine.runtime.caches.held import Held
from engine.runtime.caches.manager import CacheManager
from engine.runtime.caches.window import WindowCache
from engine.runtime.core import EngineCore

BLOCK_SIZE = 4
VOCAB = 32


def group(kind: str, window: int) -> CacheGroup:
    return CacheGroup(
        name=kind,
        kind=kind,  # type: ignore[arg-type]
        window=window,
        layers=[0],
        num_kv_heads=1,
        head_dim=1,
        block_size=BLOCK_SIZE,
        dtype="float32",
    )


def manager(kind: str, window: int, num_blocks: int = 64) -> CacheManager:
    return {"window": WindowCache, "chunk": ChunkCache}[kind](group(kind, window), num_blocks)


def digests(count: int, seed: int = 0) -> list[bytes]:
    names, parent = [], ROOT_DIGEST
    for place in range(count):
        parent = block_digest(parent, np.array([seed, place], np.int32).tobytes())
        names.append(parent)
    return names


def fill(cache: CacheManager, held: Held, count: int, names: list[bytes]) -> None:
    """Compute and publish the first `count` blocks, one at a time, as prompts in chunks of a block are."""
    for place in range(count):
        cache.extend(held, (place + 1) * BLOCK_SIZE)
        cache.publish(held, names[: place + 1], place)
        cache.trim(held, (place + 1) * BLOCK_SIZE)


@pytest.mark.parametrize(
    ("kind", "window", "kept"),
    [
        ("window", 1, 0),  # the next token sees itself only
        ("window", 2, 1),
        ("window", 5, 1),
        ("window", 6, 2),
        ("window", 100, 10),
        ("chunk", 8, 0),  # 40 tokens are whole chunks: the next token begins one
        ("chunk", 16, 2),
        ("chunk", 64, 10),
    ],
)
def test_what_no_later_token_sees_is_given_back(kind: str, window: int, kept: int) -> None:
    cache, held = manager(kind, window), Held(16)
    fill(cache, held, 10, digests(10))
    assert len(held.held) == kept == cache.pool.num_referenced
    assert len(held.blocks) == 10, "blocks keep their places"
    cache.pool.check([held.held])
    cache.release(held)
    assert cache.pool.num_referenced == 0
    cache.pool.check([])


@pytest.mark.parametrize("window", [1, 3, 4, 5, 9, 30])
def test_a_prefix_needs_the_blocks_of_its_window_only(window: int) -> None:
    cache, held, names = manager("window", window), Held(16), digests(10)
    fill(cache, held, 10, names)
    cache.release(held)
    for length in range(11):
        assert cache.match(names[:length]) == length
        wanted = -(-min(window - 1, length * BLOCK_SIZE) // BLOCK_SIZE)
        assert len(cache.find(names[:length])) == wanted


def test_a_block_that_is_gone_rules_out_the_prefixes_that_need_it() -> None:
    cache, held, names = manager("window", 9), Held(16), digests(10)  # two blocks before the next token's
    fill(cache, held, 10, names)
    cache.release(held)
    cache.pool.forget([names[6]])
    assert [cache.match(names[:length]) for length in range(11)] == [0, 1, 2, 3, 4, 5, 6, 6, 6, 9, 10]


def test_acquired_blocks_stand_at_their_places() -> None:
    cache, held, names = manager("window", 9), Held(16), digests(6)
    fill(cache, held, 6, names)
    other = Held(16)
    cache.acquire(other, names)
    assert other.blocks[4:] == held.blocks[4:6]
    assert other.table[4:6].tolist() == other.blocks[4:]
    assert (other.first, len(other.blocks)) == (4, 6)
    cache.pool.check([held.held, other.held])


@given(window=st.integers(1, 20), length=st.integers(1, 60), kind=st.sampled_from(["window", "chunk"]))
def test_no_decoding_sequence_holds_more_than_is_reckoned_with(window: int, length: int, kind: str) -> None:
    """And one that computes its prompt token by token, of which a step ahead may always have one block more."""
    cache, held, names = manager(kind, window), Held(20), digests(20)
    most = most_held(cache.group, length)
    for position in range(length):
        cache.extend(held, position + 1)
        assert len(held.held) <= most
        if (position + 1) % BLOCK_SIZE == 0:
            full = (position + 1) // BLOCK_SIZE
            cache.publish(held, names[:full], full - 1)
            if position + 2 <= length:
                cache.extend(held, position + 2)  # planned ahead
                assert len(held.held) <= most
            cache.trim(held, position + 1)
    cache.pool.check([held.held])


def test_a_window_holds_sequences_of_any_length_if_it_holds_its_own() -> None:
    assert manager("window", 9, num_blocks=4).capacity == sys.maxsize
    assert manager("window", 9, num_blocks=3).capacity == 3 * BLOCK_SIZE
    assert blocks_for(group("window", 9), 8) + 2 == 4


def test_groups_agree_on_a_prefix() -> None:
    """The full group knows four blocks, the window group lost the fourth; with three, the window group still has what it needs."""
    caches = Caches([group("full", 0), group("window", 5)], {"full": 16, "window": 16})
    held, names = caches.hold_nothing(40), digests(5)
    for place in range(5):
        caches.extend(held, (place + 1) * BLOCK_SIZE, 5 * BLOCK_SIZE)
        caches.publish(held, names[: place + 1], place)
    caches.release(held)
    full, window = (found.pool for found in caches.managers)
    assert caches.match(names) == 5
    full.forget(names[4:])
    assert caches.match(names) == 4
    window.forget(names[3:4])
    assert caches.match(names) == 3
    window.forget(names[2:3])
    full.forget(names[1:2])
    assert caches.match(names) == 1
    full.forget(names[:1])
    assert caches.match(names) == 0


@dataclass
class Load:
    windows: tuple[int, ...]
    num_blocks: int
    max_num_seqs: int
    max_batch_tokens: int
    requests: list[tuple[int, list[int], int, int]]
    """The step in which each arrives, its prompt, how many tokens it wants, and after which step it is aborted."""


prompts = st.tuples(
    st.sampled_from([[], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8], list(range(21))]), st.lists(st.integers(0, 3), min_size=1, max_size=12)
).map(lambda parts: parts[0] + parts[1])
loads = st.builds(
    Load,
    windows=st.sampled_from([(0, 3), (0, 4), (9, 0), (0, 60), (3,), (4,), (6,), (3, 10), (0, 1, 7)]),
    num_blocks=st.integers(8, 40),
    max_num_seqs=st.integers(1, 5),
    max_batch_tokens=st.integers(5, 40),
    requests=st.lists(st.tuples(st.integers(0, 12), prompts, st.integers(1, 20), st.integers(3, 60)), min_size=1, max_size=8),
)


@settings(max_examples=150, deadline=None)
@given(load=loads, ahead=st.booleans())
def test_whatever_the_load_every_sequence_gets_what_it_gets_alone(load: Load, ahead: bool) -> None:
    """No block is lost, shared wrongly or read after it was given back: the executor looks at every token that a row sees."""
    manifest = tiny_manifest(vocab_size=VOCAB, max_context=64, block_size=BLOCK_SIZE, windows=load.windows)
    executor = FakeExecutor(num_blocks=load.num_blocks, manifest=manifest)
    options = RuntimeOptions(max_num_seqs=load.max_num_seqs, max_batch_tokens=load.max_batch_tokens)
    core = EngineCore(executor, options)
    got: dict[str, list[int]] = {}
    ended: set[str] = set()
    step, planned = 0, None
    while core.has_work() or step <= 12:
        for index, (arrives, prompt, count, _) in enumerate(load.requests):
            if arrives == step:
                core.submit(Submit(str(index), prompt, SamplingParams(max_tokens=count, temperature=0.0)))
        step += 1
        assert step < 2000, "the engine does not come to an end"
        now = planned or core.plan()
        if now is None:
            outputs = core.report().outputs
        else:
            computed = core.compute(now)
            planned = core.plan(ahead=True) if ahead else None
            outputs = core.finish(now, computed).outputs
        core.check()
        for output in outputs:
            got.setdefault(output.id, []).extend(output.tokens)
            ended |= {output.id} if output.finish_reason else set()
        for index, (_, _, _, aborted) in enumerate(load.requests):
            if aborted == step and str(index) not in ended:
                if planned is not None:
                    core.withdraw(planned)
                    planned = None
                core.abort(str(index))
                got.pop(str(index), None)
        core.check()
    window = 0 if 0 in load.windows else max(load.windows)
    capacity = core._scheduler.capacity
    for id, tokens in got.items():
        _, prompt, count, _ = load.requests[int(id)]
        alone = solo(prompt, SamplingParams(max_tokens=count, temperature=0.0), vocab_size=VOCAB, capacity=capacity, window=window)
        assert tokens == (alone if id in ended and len(prompt) <= capacity else alone[: len(tokens)])


def test_equal_prompts_share_their_window() -> None:
    """A second request finds the prefix although the first one's window has long left it."""
    manifest = tiny_manifest(vocab_size=VOCAB, max_context=256, block_size=BLOCK_SIZE, windows=(0, 9))
    core = EngineCore(FakeExecutor(num_blocks=100, manifest=manifest), RuntimeOptions(max_num_seqs=2, max_batch_tokens=16))
    system = [token % VOCAB for token in range(80)]
    cached = []
    for question in ([1, 2, 3], [4, 5, 6]):
        core.submit(Submit(str(question), [*system, *question], SamplingParams(max_tokens=20, temperature=0.0)))
        while core.has_work():
            cached += [output.cached_tokens for output in core.step().outputs if output.finish_reason]
            core.check()
    assert cached == [0, 80]


def test_long_sequences_run_in_windows_that_do_not_hold_them() -> None:
    """Chunks are made as small as the window's pool wants it."""
    manifest = tiny_manifest(vocab_size=VOCAB, max_context=256, block_size=BLOCK_SIZE, windows=(9,))
    executor = FakeExecutor(num_blocks=5, manifest=manifest)
    core = EngineCore(executor, RuntimeOptions(max_num_seqs=2, max_batch_tokens=64))
    prompt = [token % VOCAB for token in range(150)]
    core.submit(Submit("a", prompt, SamplingParams(max_tokens=30, temperature=0.0)))
    tokens: list[int] = []
    while core.has_work():
        tokens += [token for output in core.step().outputs for token in output.tokens]
        core.check()
    assert tokens == solo(prompt, SamplingParams(max_tokens=30, temperature=0.0), vocab_size=VOCAB, max_context=256, window=9)
    assert max(step[0] for step in executor.steps) <= 5 * BLOCK_SIZE

"""The native loop: what it gives, what it holds, what it refuses."""

import gc
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from engine.artifacts import load_manifest
from engine.errors import ArtifactError
from engine.runtime.batch import StepInputs
from engine.runtime.executor import Executor
from engine.runtime.memory import Memory
from engine.runtime.native_program import NativeProgram
from engine.runtime.probe import whole_prompt


def load(artifact: Path, blocks: int = 8) -> Executor:
    return Executor.load(artifact, kv_memory=blocks * load_manifest(artifact).kv_cache.bytes_per_block)


def one_prompt(tokens: int, block_size: int) -> StepInputs:
    return whole_prompt(list(range(tokens)), block_size)


def one_token_each(sequences: int, block_size: int) -> StepInputs:
    """A step in which every sequence computes its first token, in a block of its own."""
    numbers = np.arange(sequences + 1, dtype=np.int32)
    first, ones = np.zeros(sequences, np.int32), np.ones(sequences, np.int32)
    return StepInputs(numbers[:-1].copy(), first, numbers, ones, numbers[:-1, None].copy(), numbers[:-1] * block_size)


def test_logits_are_the_callers_to_keep(tiny_artifact: Path) -> None:
    executor = load(tiny_artifact)
    block_size = executor.manifest.kv_cache.block_size
    first = executor.step(whole_prompt(list(range(20)), block_size))
    copy = first.copy()
    second = executor.step(whole_prompt(list(range(20, 60)), block_size))
    assert not np.array_equal(first, second)
    del executor
    gc.collect()
    assert np.array_equal(first, copy)


def test_logits_give_their_memory_back(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native tensor goes with the last array over it: not earlier, and once."""
    executor = load(tiny_artifact)
    functions = executor._program._c
    delete, deleted = functions["engine_tensor_delete"], []

    def record(tensor: int) -> None:
        deleted.append(tensor)
        delete(tensor)

    monkeypatch.setitem(functions, "engine_tensor_delete", record)
    inputs = whole_prompt(list(range(20)), executor.manifest.kv_cache.block_size)
    for step in range(5):
        logits = executor.step(inputs)
        row = logits[0]
        del logits
        assert len(deleted) == step
        assert np.isfinite(row).all()
        del row
        assert len(deleted) == step + 1


@pytest.mark.parametrize("inputs_of", [one_prompt, one_token_each])
def test_nothing_is_left_behind(tiny_artifact: Path, inputs_of: Callable[[int, int], StepInputs]) -> None:
    """The prompt's steps are all activations; those of one token each also leave more than 50 MB of logits, if nobody deletes them."""
    executor = load(tiny_artifact, blocks=200)
    inputs = inputs_of(200, executor.manifest.kv_cache.block_size)
    for _ in range(20):
        executor.step(inputs)
    before = psutil.Process().memory_info().rss
    for _ in range(200):
        executor.step(inputs)
    assert psutil.Process().memory_info().rss - before < 16 << 20


def test_a_program_that_uses_what_is_not_there_is_refused(tiny_artifact: Path) -> None:
    executor = load(tiny_artifact)
    manifest = executor.manifest
    with pytest.raises(ArtifactError, match="the program uses weight:"):
        NativeProgram(tiny_artifact, manifest, {}, threads=1)
    (first, *others) = manifest.program.calls
    nothing = Memory(np.zeros(4, np.uint8), "float32", (1,))
    constants = {name: nothing for call in manifest.program.calls for name in call.inputs if name.startswith(("weight:", "kv:"))}
    for broken, message in (
        (msgspec.structs.replace(first, target="0000"), "calls segment 0000"),
        (msgspec.structs.replace(first, kind="operator", target="engine.nothing"), "calls engine.nothing with"),
    ):
        program = msgspec.structs.replace(manifest.program, calls=[broken, *others])
        with pytest.raises(ArtifactError, match=message):
            NativeProgram(tiny_artifact, msgspec.structs.replace(manifest, program=program), constants, threads=1)


def test_a_failing_call_says_why(tiny_artifact: Path) -> None:
    executor = load(tiny_artifact)
    inputs = whole_prompt([1, 2, 3], executor.manifest.kv_cache.block_size)
    inputs.tokens[1] = 1 << 30
    with pytest.raises(RuntimeError, match=r"call 0 failed.*"):
        executor.step(inputs)
    inputs.tokens[1] = 2
    assert np.isfinite(executor.step(inputs)).all()


@pytest.mark.parametrize("vocab", [1, 7, 64, 1000, 49152])
def test_argmax_is_the_first_of_the_largest(tiny_artifact: Path, vocab: int) -> None:
    executor = load(tiny_artifact)
    generator = np.random.default_rng(vocab)
    logits = generator.standard_normal((6, vocab)).astype(np.float32)
    logits[1] = np.round(logits[1])  # many that are equal
    logits[2] = -np.inf
    logits[2, vocab // 2] = -3e38
    logits[3, vocab - 1] = np.nan
    logits[4, vocab // 3] = np.inf
    logits[5] = -np.inf
    found = executor.choose(logits, [2, 0, 1, 0, 5, 3, 4])
    assert found == [vocab // 2, *(int(logits[row].argmax()) for row in (0, 1, 0)), -1, -1, -1]
    assert executor.choose(logits, []) == []

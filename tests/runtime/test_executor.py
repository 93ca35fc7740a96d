"""The native loop: what it gives, what it holds, what it refuses."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from engine.artifacts import CacheGroup, Call, InputInfo, Program, load_manifest
from engine.artifacts.step_arrays import step_arrays, whole_prompts
from engine.artifacts.step_inputs import step_inputs
from engine.errors import ArtifactError, MismatchError
from engine.kernels.cut_operators import CUT_OPERATORS
from engine.runtime import native_program
from engine.runtime.batch import StepInputs
from engine.runtime.executor import Executor
from engine.runtime.memory import Memory
from engine.runtime.native_program import NativeProgram
from engine.runtime.probe import whole_prompt


def load(artifact: Path, blocks: int = 8) -> Executor:
    return Executor.load(artifact, kv_memory=blocks * load_manifest(artifact).caches[0].bytes_per_block)


def one_prompt(tokens: int, groups: list[CacheGroup]) -> StepInputs:
    return whole_prompt(list(range(tokens)), groups)


def one_token_each(sequences: int, groups: list[CacheGroup]) -> StepInputs:
    """A step in which every sequence computes its first token, in a block of its own."""
    sizes = {group.name: group.block_size for group in groups}
    return StepInputs(step_arrays(whole_prompts([[token] for token in range(sequences)], sizes), sizes))


def test_logits_are_the_callers_to_keep(tiny_artifact: Path) -> None:
    executor = load(tiny_artifact)
    groups = executor.manifest.caches
    first = executor.step(whole_prompt(list(range(20)), groups))
    copy = first.copy()
    second = executor.step(whole_prompt(list(range(20, 60)), groups))
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
    inputs = whole_prompt(list(range(20)), executor.manifest.caches)
    for step in range(5):
        logits = executor.step(inputs)
        row = logits[0]
        del logits
        assert len(deleted) == step
        assert np.isfinite(row).all()
        del row
        assert len(deleted) == step + 1


@pytest.mark.parametrize("inputs_of", [one_prompt, one_token_each])
def test_nothing_is_left_behind(tiny_artifact: Path, inputs_of: Callable[[int, list[CacheGroup]], StepInputs]) -> None:
    """The prompt's steps are all activations; those of one token each also leave more than 50 MB of logits, if nobody deletes them."""
    executor = load(tiny_artifact, blocks=200)
    inputs = inputs_of(200, executor.manifest.caches)
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
        NativeProgram(tiny_artifact, manifest, manifest.step, {}, threads=1)
    (first, *others) = manifest.step.calls
    nothing = Memory(np.zeros(4, np.uint8), "float32", (1,))
    constants = {name: nothing for call in manifest.step.calls for name in call.inputs if name.startswith(("weight:", "cache:"))}
    for broken, message in (
        (msgspec.structs.replace(first, target="0000"), "calls segment 0000"),
        (msgspec.structs.replace(first, kind="operator", target="engine.nothing"), "calls engine.nothing with"),
    ):
        program = msgspec.structs.replace(manifest.step, calls=[broken, *others])
        with pytest.raises(ArtifactError, match=message):
            NativeProgram(tiny_artifact, manifest, program, constants, threads=1)


def test_code_of_another_version_is_refused_before_it_is_called(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load_manifest(tiny_artifact)

    def refusal() -> str:
        with pytest.raises(MismatchError, match="was built by another version of Engine") as caught:
            NativeProgram(tiny_artifact, manifest, manifest.step, {}, threads=1)
        assert [misfit.field for misfit in caught.value.misfits] == changed
        return str(caught.value)

    changed = ["engine_program_take"]
    result, arguments = native_program._SIGNATURES["engine_program_take"]
    monkeypatch.setitem(native_program._SIGNATURES, "engine_program_take", (result, arguments[:-1]))
    assert "p p i4 p i8 p p p" in refusal()
    changed.append("engine_program_later")
    monkeypatch.setitem(native_program._SIGNATURES, "engine_program_later", (None, []))
    assert "none" in refusal()
    changed = list(native_program._SIGNATURES)
    monkeypatch.setattr(native_program, "load_code", lambda path: ctypes.CDLL("libm.so.6"))
    refusal()


def test_inputs_are_of_any_type(tiny_artifact: Path) -> None:
    """A program of one call whose queries, keys and values are inputs in float32: what it gives is looked at through its cache."""
    manifest = load(tiny_artifact).manifest
    shape = (1, 1, 16, 8)
    caches = {f"cache:full.0.{part}": Memory(np.zeros(4 * 16 * 8, np.uint8), "float32", shape) for part in "kv"}
    floats = [InputInfo(name=name, dtype="float32", dims=["T", "heads", "size"]) for name in "qkv"]
    paged = [info for info in step_inputs(["full"]) if info.name not in ("tokens", "positions", "logit_rows")]
    names = [*(f"input:{name}" for name in "qkv"), *caches, *(f"input:{info.name}" for info in paged)]
    operator = CUT_OPERATORS["engine.attention"]
    names += [""] * (operator.tensor_count - len(names))
    scalars = {"scale": 1.0}
    call = Call(
        kind="operator",
        target="engine.attention",
        inputs=names,
        outputs=["value:0"],
        scalars=[scalars.get(name, 0) for name in operator.scalars],
    )
    step = Program(inputs=[*floats, *paged], calls=[call], results={"out": "value:0"})
    program = NativeProgram(tiny_artifact, manifest, step, caches, threads=1)
    q, k, v = np.random.default_rng(0).standard_normal((3, 5, 1, 8)).astype(np.float32)
    arrays = step_arrays(whole_prompts([[0] * 5], {"full": 16}), {"full": 16})
    program.run(StepInputs({**arrays, "q": q, "k": k, "v": v}))
    values = caches["cache:full.0.v"].data.view(np.float32).reshape(16, 8)
    assert np.array_equal(values[:5], v[:, 0])
    for dtype, dims in (("int32", 3), ("float32", 2), ("float7", 3)):
        with pytest.raises(RuntimeError, match=f"there is no result of {dims} dimensions and type {dtype}"):
            program.take("out", dtype, dims)
    assert program.take("out", "float32", 3).shape == (5, 1, 8)
    with pytest.raises(RuntimeError, match="there is no result"):
        program.take("out", "float32", 3)  # it has been taken


def test_only_the_rows_that_are_wanted_are_computed(tiny_artifact: Path) -> None:
    """Any rows of any sequence, in any order, more of them than sequences; each is what it is alone."""
    executor = load(tiny_artifact)
    sizes = {group.name: group.block_size for group in executor.manifest.caches}
    pieces = whole_prompts([[5, 6, 7, 8], [9, 10]], sizes)
    wanted = [piece._replace(wanted=places) for piece, places in zip(pieces, ([3, 1, 0], []), strict=True)]
    rows = executor.step(StepInputs(step_arrays(wanted, sizes)))
    assert rows.shape == (3, executor.manifest.model.vocab_size)
    alone = [executor.step(whole_prompt([5, 6, 7, 8][:count], executor.manifest.caches))[0] for count in (4, 2, 1)]
    assert np.array_equal(rows, np.stack(alone))


def test_a_failing_call_says_why(tiny_artifact: Path) -> None:
    executor = load(tiny_artifact)
    inputs = whole_prompt([1, 2, 3], executor.manifest.caches)
    inputs.arrays["tokens"][1] = 1 << 30
    with pytest.raises(RuntimeError, match=r"call 0 failed.*"):
        executor.step(inputs)
    inputs.arrays["tokens"][1] = 2
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

"""What anybody may have written: manifests, launch plans and headers of weights that are almost right.

Whoever reads them refuses them with an error of ours, or has something that can be used; and
nothing outside of the artifact's directory is opened. Digests are made right again after a change:
otherwise all of it would be refused for that alone.
"""

import io
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from artifact_stand_in import resealed
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from opened_files import opened_files
from rich.console import Console
from rich_artifact import WEIGHT, write_rich_artifact
from strange_json import DEEP, HUGE, as_text, found_at, places, strange

from engine.artifacts import Manifest, check_code, check_machine, check_text, check_weights, load_manifest, verify
from engine.artifacts.describe import describe
from engine.artifacts.launch_plan import (
    Guard,
    LaunchPlan,
    Location,
    PlanCandidate,
    PlanKernel,
    PlanLaunch,
    PlanOperand,
    PlanProblem,
    evaluate,
    load_plan,
)
from engine.artifacts.manifest import UNDIGESTED, content_digest
from engine.bench.tune import at
from engine.errors import ArtifactError, EngineError
from engine.runtime.capacity.kv_memory import count_blocks
from engine.runtime.capacity.pools import pool_bytes
from engine.runtime.check_program import check_program
from engine.runtime.probe import replay
from engine.runtime.weights import locate_weights, open_weights

fuzzed = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
many, few = settings(fuzzed, max_examples=250), settings(fuzzed, max_examples=80)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """An artifact, beside it a file that is nobody's business, and in it a link there; and its manifest before any test changes it."""
    place = tmp_path_factory.mktemp("fuzz")
    (place / "outside").mkdir()
    (place / "outside" / "secret").write_bytes(b"secret")
    write_rich_artifact(place / "artifact")
    (place / "artifact" / "link").symlink_to(place / "outside")
    return place / "artifact", json.loads((place / "artifact" / "manifest.json").read_bytes())


@pytest.fixture(scope="module")
def rich(written: tuple[Path, Any]) -> Path:
    return written[0]


@pytest.fixture(scope="module")
def content(written: tuple[Path, Any]) -> Any:
    return written[1]


def in_artifact_only(directory: Path, use: Callable[[], object]) -> None:
    """Nothing but what a process needs anyway is opened elsewhere."""
    with opened_files() as opened:
        use()
    strangers = [path for path in opened if not path.startswith(str(directory))]
    assert not [path for path in strangers if path.startswith((str(directory.parent), "/etc"))], strangers


def uses(directory: Path, manifest: Manifest) -> list[Callable[[], object]]:
    """All that is done with a manifest's numbers and names before native code runs."""
    constants = [f"weight:{name}" for name in manifest.weights] + [tensor for group in manifest.caches for tensor in group.tensors]

    def memory_of_the_cache() -> None:
        for limit in (None, 1 << 20):
            pools = count_blocks(manifest, limit, max_num_seqs=4, max_batch_tokens=64)
            assert all(0 < pools[group.name] * group.block_size < 2**31 for group in manifest.caches)
            assert limit is None or pool_bytes(manifest.caches, pools) <= limit

    def logits(_: object) -> Any:
        return np.zeros((1, manifest.model.vocab_size), np.float32)

    return [
        lambda: Console(file=io.StringIO(), width=200).print(describe(manifest)),
        lambda: check_machine(manifest),
        lambda: check_code(directory, manifest),
        lambda: check_text(directory, manifest),
        lambda: check_weights(directory, manifest),
        lambda: verify(directory, manifest),
        lambda: locate_weights(directory, manifest),
        lambda: [memory.data.sum() for memory in open_weights(directory, manifest).values()],
        lambda: check_program(manifest.step, manifest.segments, constants),
        memory_of_the_cache,
        lambda: replay(manifest, logits, {group.name: 1 for group in manifest.caches}) if manifest.model.vocab_size < 1 << 20 else None,
    ]


def refused(use: Callable[[], object]) -> bool:
    try:
        use()
    except EngineError:
        return True
    return False


def use_all(directory: Path) -> None:
    try:
        manifest = load_manifest(directory)
    except EngineError as error:
        event(f"refused: {type(error).__name__}")
        return
    event("read")
    for use in uses(directory, manifest):
        refused(use)


def test_what_is_fuzzed_is_read_and_used_as_it_is(rich: Path, content: Any) -> None:
    (rich / "manifest.json").write_text(json.dumps(content))
    (rich / "link").unlink()
    results = [refused(use) for use in uses(rich, load_manifest(rich))]
    (rich / "link").symlink_to(rich.parent / "outside")
    assert results.count(True) == 2  # another torch, and a golden probe that zeros do not pass


@many
@given(st.data())
def test_a_strange_manifest_is_refused_or_usable(rich: Path, content: Any, data: st.DataObject) -> None:
    text = as_text(data.draw(strange(content)))
    try:
        text = json.dumps(resealed(json.loads(text)))
    except (ValueError, RecursionError, TypeError):
        event("not to be sealed")
    (rich / "manifest.json").write_text(text)
    in_artifact_only(rich, lambda: use_all(rich))


@few
@given(st.data())
def test_a_change_without_a_new_digest_is_always_refused(rich: Path, content: Any, data: st.DataObject) -> None:
    changed = data.draw(strange(content))
    if isinstance(changed, dict) and {**changed, "created": 0} == {**content, "created": 0}:
        return
    (rich / "manifest.json").write_text(as_text(changed))
    with pytest.raises(EngineError):
        load_manifest(rich)


@few
@given(st.binary(max_size=200))
@example(b"\xef\xbb\xbf{}")
@example('{"schema": 4}'.encode("utf-16"))
@example(b'{"schema": 4, "schema": 4}')
def test_bytes_that_are_no_manifest(rich: Path, raw: bytes) -> None:
    (rich / "manifest.json").write_bytes(raw)
    with pytest.raises(EngineError):
        load_manifest(rich)


def test_every_field_is_in_the_digest_but_those_that_are_declared(content: Any) -> None:
    """A field is whatever is not a container; an empty one, whatever its type, gets something."""
    filled = {bool: True, int: 1, float: 0.5, str: "x", list: ["x"], dict: {"x": 0}, type(None): "x"}
    for place in places(content):
        if not place:
            continue
        changed = json.loads(json.dumps(content))
        holder = found_at(changed, place[:-1])
        value = holder[place[-1]]
        holder[place[-1]] = filled[type(value)] if not value else None
        assert (content_digest(changed) == content_digest(content)) == (place[0] in UNDIGESTED), place


def test_a_flipped_number_is_refused_with_both_digests(rich: Path, content: Any) -> None:
    (rich / "manifest.json").write_text(json.dumps({**content, "memory": {**content["memory"], "weight_bytes": 5}}))
    with pytest.raises(ArtifactError, match=rf"was changed after it was written: .*, it says '{content['digest'][:16]}'"):
        load_manifest(rich)


def test_only_one_order_of_words_decides_the_digest(content: Any) -> None:
    """It is of what is said and not of how: so any tool may check it."""
    backwards = dict(reversed(content.items()))
    assert content_digest(backwards) == content_digest(content) == content["digest"]
    assert content_digest({**content, "created": 1}) == content["digest"]


PLAN = LaunchPlan(
    inputs=[["d0", 16]],
    buffers=[["*", "d0", 64], ["max", 4, ["//", "d0", 2]]],
    outputs=[Location(buffer=1)],
    output_shapes=[["d0", 16]],
    kernels=[
        PlanKernel(
            cubin="a" * 64,
            function="f",
            threads=128,
            shared_bytes=0,
            parameters=["pointer", "pointer", "int32", "pointer", "pointer"],
            registers=1,
            stack_bytes=0,
        )
    ],
    launches=[
        PlanLaunch(
            kernel=0,
            grid=("d0", ["%", "d0", 7], 1),
            arguments=[Location(buffer=0), Location(buffer=1, offset=["*", "Q", 4]), "d0"],
            when=[Guard(value="d0", minimum=0, maximum=16)],
        )
    ],
    guards=[Guard(value=["min", "d0", "Q"], minimum=1, maximum=None)],
    problems=[
        PlanProblem(
            name="work",
            kind="rows",
            dimensions={"d0": ["+", "size", 1], "Q": 1},
            operands=[PlanOperand(name="x", bytes=["*", "d0", 32], dtype="bfloat16", content="numbers", streamed=False)],
            out_bytes=["*", "d0", 64],
            out_dtype="float32",
            policy=[(16, "few"), (None, "few")],
            candidates=[
                PlanCandidate(
                    name="few",
                    least=1,
                    most=None,
                    buffers=[["*", "table", 4]],
                    launches=[PlanLaunch(kernel=0, grid=(1, 1, 1), arguments=[Location(buffer=0), Location(buffer=2), "d0"])],
                )
            ],
        )
    ],
)


@many
@given(st.data())
def test_a_strange_launch_plan_is_refused_or_usable(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "plan.json"
    path.write_text(as_text(data.draw(strange(msgspec.to_builtins(PLAN)))))
    try:
        plan = load_plan(path)
    except ArtifactError:
        return
    event("read")
    dimensions = {size: 3 for shape in plan.inputs for size in shape if isinstance(size, str)} | {"Q": 2}
    use_launches(plan, plan.launches, len(plan.inputs) + len(plan.buffers), dimensions)
    for problem in plan.problems:
        given_sizes = {"size": 5, "table": 2}
        for value in problem.dimensions.values():
            refused(partial(evaluate, value, given_sizes))
        assert at(problem.policy, 10**6) in {candidate.name for candidate in problem.candidates}
        for candidate in problem.candidates:
            sizes = given_sizes | dict.fromkeys(problem.dimensions, 3)
            use_launches(plan, candidate.launches, len(problem.operands) + 1 + len(candidate.buffers), sizes)


def use_launches(plan: LaunchPlan, launches: list[PlanLaunch], buffers: int, dimensions: dict[str, int]) -> None:
    for launch in launches:
        assert len(launch.arguments) <= len(plan.kernels[launch.kernel].parameters)
        for given_one in launch.arguments:
            assert not isinstance(given_one, Location) or given_one.buffer < buffers
            offset = given_one.offset if isinstance(given_one, Location) else given_one
            refused(partial(evaluate, offset, dimensions))


@pytest.mark.parametrize("expression", [["//", "d0", 0], ["%", 1, ["*", "d0", 0]], ["^", 1, 2], ["+", 1], "d1", True, [], None])
def test_an_expression_without_a_value(expression: Any) -> None:
    with pytest.raises(ArtifactError, match="cannot be evaluated"):
        evaluate(expression, {"d0": 1})


HEADER = {WEIGHT: {"dtype": "U8", "shape": [4, 16], "data_offsets": [0, 64]}, "__metadata__": {"format": "pt"}}


@few
@given(st.data())
@example(DEEP)
@example(HUGE)
def test_a_strange_header_of_weights_gives_what_is_in_the_file(rich: Path, content: Any, data: Any) -> None:
    header = data if isinstance(data, str) else data.draw(strange(HEADER))
    (rich / "manifest.json").write_text(json.dumps(content))
    manifest = load_manifest(rich)
    text = as_text(header).encode()
    path = rich / "weights" / "0.safetensors"
    before = path.read_bytes()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    try:
        for memory in open_weights(rich, manifest).values():
            assert memory.data.sum() == 0
            assert len(memory.data) == memory.nbytes
    except ArtifactError:
        event("refused")
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("length", [0, 63, 10**7, 2**63, 2**64 - 1])
def test_a_header_that_is_longer_than_its_file(rich: Path, content: Any, length: int) -> None:
    (rich / "manifest.json").write_text(json.dumps(content))
    path = rich / "weights" / "0.safetensors"
    before = path.read_bytes()
    path.write_bytes(length.to_bytes(8, "little") + before[8:])
    try:
        with pytest.raises(ArtifactError, match="cannot be opened"):
            open_weights(rich, load_manifest(rich))
    finally:
        path.write_bytes(before)


def test_a_manifest_of_a_gigabyte_is_not_read(rich: Path, content: Any) -> None:
    path = rich / "manifest.json"
    path.write_text(json.dumps(content))
    os.truncate(path, 1 << 30)
    with opened_files() as opened, pytest.raises(ArtifactError, match="it is something else"):
        load_manifest(rich)
    path.unlink()
    assert str(path) not in opened

"""`engine tune` over the stand-in for the driver, on whose clock every kernel takes as long as the test says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda, Launched, fake_cuda_installed, memory
from families import write_tiny_checkpoint
from gpu_artifacts import build
from random_checkpoints import write_random_checkpoint
from tuning import candidate_kernels, computed_candidates

from engine.artifacts import load_manifest
from engine.artifacts.graph import load_template
from engine.artifacts.launch_plan import PlanCandidate, PlanKernel, PlanLaunch, PlanProblem, holds, load_plan
from engine.artifacts.tuning import Timing, load_tuned
from engine.bench.candidates import Setting, agree, random_order
from engine.bench.options import TuneOptions
from engine.bench.tune import at, choose, tune
from engine.cli import main
from engine.compiler.build import build as build_artifact
from engine.compiler.options import BuildOptions
from engine.errors import DeviceError, UsageError
from engine.kernels.moe.reference import sort_routes

SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 1,
    "vocab_size": 320,
    "max_position_embeddings": 128,
}
SETTING = Setting(context=128, block_size=32)


class Tunable(NamedTuple):
    checkpoint: Path
    artifact: Path
    dump: Path

    def problems(self) -> dict[str, tuple[PlanProblem, list[PlanKernel]]]:
        plans = [load_plan(self.artifact / segment.file) for segment in load_manifest(self.artifact).segments]
        return {problem.name: (problem, plan.kernels) for plan in plans for problem in plan.problems}


@pytest.fixture(scope="module")
def tunable(tmp_path_factory: pytest.TempPathFactory) -> Tunable:
    directory = tmp_path_factory.mktemp("tunable")
    checkpoint = write_random_checkpoint("llama", directory / "model", **SHAPE)
    built = build(checkpoint, directory, "--weights", "none", "--tunable")
    return Tunable(checkpoint, built.artifact, built.dump)


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with fake_cuda_installed() as fake:
        yield fake


def microseconds(cubin: str) -> int:
    """How long a kernel takes here: nothing that has to do with what it does."""
    return 10 + int(cubin[:6], 16) % 90


def pretend(fake: FakeCuda, tunable: Tunable, spoil: str = "") -> None:
    """Kernels take their time and leave zeros as results; the one whose digest is `spoil` leaves ones."""
    known = candidate_kernels(tunable.artifact)

    def run(launched: Launched) -> None:
        kernel = known[launched.image]
        fake.advance(microseconds(kernel.digest) / 1e6)
        if kernel.result is not None:
            address = launched.values(kernel.parameters)[kernel.result]
            memory(address, "uint8", fake.allocated(address))[:] = 63 if kernel.digest == spoil else 0

    fake.declare(tunable.artifact, load_manifest(tunable.artifact))
    fake.on_launch(run)


def takes(problem: PlanProblem, kernels: list[PlanKernel], candidate: PlanCandidate, size: int) -> int:
    """Microseconds of one launch of a candidate."""
    dims = SETTING.dimensions(problem, size)
    return sum(microseconds(kernels[launch.kernel].cubin) for launch in candidate.launches if is_launched(launch, dims))


def is_launched(launch: PlanLaunch, dims: dict[str, int]) -> bool:
    return all(holds(guard, dims) for guard in launch.when)


@pytest.mark.slow
def test_the_fastest_is_chosen_and_built(tunable: Tunable, fake: FakeCuda, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretend(fake, tunable)
    file = tmp_path / "tuned.json"
    assert main(["tune", str(tunable.artifact), "-o", str(file), "--runs", "2", "--margin", "0"]) == 0
    tuned = load_tuned(file)
    assert (tuned.target, tuned.device) == ("sm90", "Stand-in 0")
    problems = tunable.problems()
    assert set(tuned.choices) == set(problems)
    assert {problem.kind for problem, _ in problems.values()} == {"rows", "decode", "prefill"}
    better = 0
    for name, (problem, kernels) in problems.items():
        candidates = {candidate.name: candidate for candidate in problem.candidates}
        assert tuned.choices[name][-1][0] is None
        below = 0
        for timing in tuned.timings[name]:
            size, chosen = timing.size, at(tuned.choices[name], timing.size)
            assert timing.refused == []
            assert set(timing.seconds) == {each.name for each in problem.candidates if each.covers(below + 1, size)}
            least = min(takes(problem, kernels, candidates[each], size) for each in timing.seconds)
            assert takes(problem, kernels, candidates[chosen], size) == least
            better += chosen != at(problem.policy, size)
            below = size
    assert better > 10
    said = capsys.readouterr().err
    assert "Tuned on Stand-in 0" in said
    assert "keep the first guess" in said

    built = build(tunable.checkpoint, tmp_path, "--weights", "none", "--tuned", str(file))
    manifest = load_manifest(built.artifact)
    assert manifest.tuned_on == "Stand-in 0"
    for graph in (graph for graph in manifest.graphs if graph.kind == "decode"):
        launched = {manifest.kernels[node.kernel].file for node in load_template(built.artifact / graph.file).nodes}
        wanted, others = set[str](), set[str]()
        for name, (problem, kernels) in problems.items():
            dims = SETTING.dimensions(problem, graph.sequences)
            for candidate in problem.candidates if problem.kind != "prefill" else ():
                files = {kernels[launch.kernel].file for launch in candidate.launches if is_launched(launch, dims)}
                (wanted if candidate.name == at(tuned.choices[name], graph.sequences) else others).update(files)
        assert wanted <= launched
        assert not (others - wanted) & launched


@pytest.mark.slow
def test_a_candidate_with_other_results_is_refused(tunable: Tunable, fake: FakeCuda, tmp_path: Path) -> None:
    problems = tunable.problems()
    name = next(name for name, (problem, _) in problems.items() if problem.kind == "decode")
    problem, kernels = problems[name]
    spoiled = next(each for each in problem.candidates if each.name == "2 programs s3")
    dims = SETTING.dimensions(problem, 256)  # at which splits are not worth it: one kernel, this candidate's own
    (own,) = (kernels[launch.kernel].cubin for launch in spoiled.launches if is_launched(launch, dims))
    pretend(fake, tunable, spoil=own)
    tuned = tune(TuneOptions(artifacts=tunable.artifact, output=tmp_path / "tuned.json", only=name, runs=1, margin=0))
    refused = {timing.size: timing.refused for timing in tuned.timings[name]}
    assert "2 programs s3" in refused[256]
    assert all(at(tuned.choices[name], timing.size) not in timing.refused for timing in tuned.timings[name])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_timed_is_the_work(tunable: Tunable, tmp_path: Path) -> None:
    """Every launch by Triton's interpreter: operands, addresses and workspaces are such that all candidates agree."""
    sizes = {"attention decode": [3], "attention mixed": [33], "128x128": [5, 33]}
    computed = computed_candidates(tunable.artifact, tunable.dump, sizes, tmp_path)
    for name, timings in computed.items():
        assert [timing.size for timing in timings] == sizes[name]
        for timing in timings:
            assert len(timing.seconds) >= 4
            assert timing.refused == []


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_experts_are_timed_as_the_work_that_they_are(tmp_path: Path) -> None:
    shape = SHAPE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "vocab_size": 323}
    checkpoint = write_tiny_checkpoint("qwen3_moe", tmp_path / "model", **shape)
    built = build(checkpoint, tmp_path, "--weights", "none", "--tunable")
    sizes = {"2x64x128 gathered": [3, 40], "1x128x64, 2 of 4": [3, 40]}
    for name, timings in computed_candidates(built.artifact, built.dump, sizes, tmp_path).items():
        assert [timing.size for timing in timings] == sizes[name]
        for timing in timings:
            assert len(timing.seconds) >= 3
            assert timing.refused == []


@pytest.mark.parametrize(("tokens", "experts", "chosen"), [(1, 4, 1), (7, 5, 5), (60, 40, 6)])
def test_orders_of_pairs_are_those_of_some_choice(tokens: int, experts: int, chosen: int) -> None:
    order = random_order(tokens, experts, chosen)
    begins, by_expert, places = np.split(order, [experts + 1, experts + 1 + tokens * chosen])
    ids = np.searchsorted(begins, places, side="right") - 1  # the expert of each pair
    routes = torch.from_numpy(np.stack([ids, ids]).reshape(2, tokens, chosen).transpose(1, 0, 2).astype(np.int32).copy())
    assert all(len(set(row)) == chosen for row in routes[:, 0].tolist())
    assert torch.equal(sort_routes(routes, experts), torch.from_numpy(order))
    assert by_expert.max() == tokens - 1


def test_an_artifact_that_was_not_built_to_be_tuned(tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(tiny_artifact), "-o", str(tmp_path / "tuned.json")]) == 2
    assert "--tunable" in capsys.readouterr().err
    assert not (tmp_path / "tuned.json").exists()


@pytest.mark.slow
def test_a_name_that_no_problem_has(tunable: Tunable, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'cholesky'") as error:
        tune(TuneOptions(artifacts=tunable.artifact, output=tmp_path / "tuned.json", only="cholesky"))
    assert "attention decode 4/2 heads of 32" in (error.value.hint or "")


@pytest.mark.slow
def test_no_gpu(tunable: Tunable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ENGINE_LIBCUDA", "libthereisnone.so")
    assert main(["tune", str(tunable.artifact), "-o", str(tmp_path / "tuned.json")]) == 7
    assert "driver" in capsys.readouterr().err


def problem(*candidates: tuple[str, int, int | None]) -> PlanProblem:
    """Its policy: the first."""
    made = [PlanCandidate(name=name, least=least, most=most, buffers=[], launches=[]) for name, least, most in candidates]
    return PlanProblem(
        name="work",
        kind="rows",
        dimensions={"d0": "size"},
        operands=[],
        out_bytes=4,
        out_dtype="float32",
        policy=[(None, candidates[0][0])],
        candidates=made,
    )


WORK = problem(("first", 1, None), ("second", 1, None), ("few", 1, 16))


@pytest.mark.parametrize(
    ("timings", "ranges"),
    [
        ([(1, {"first": 2.0, "second": 1.0})], [(None, "second")]),
        ([(1, {"first": 1.0, "second": 0.985})], [(None, "first")]),  # within the margin
        ([(1, {"first": 1.0, "few": 0.5})], [(1, "few"), (None, "first")]),
        ([(1, {"first": 1.0, "few": 0.5}), (8, {"first": 1.0, "few": 0.5})], [(8, "few"), (None, "first")]),
        ([(4, {"first": 2.0, "second": 1.0}), (32, {"first": 1.0, "second": 2.0})], [(4, "second"), (None, "first")]),
    ],
)
def test_choosing(timings: list[tuple[int, dict[str, float]]], ranges: list[tuple[int | None, str]]) -> None:
    assert choose(WORK, [Timing(size=size, seconds=seconds) for size, seconds in timings], margin=2.0) == ranges


def test_choosing_without_results() -> None:
    assert choose(WORK, [Timing(size=1, seconds={"first": 2.0, "second": 1.0}, refused=["second"])], 2.0) == [(None, "first")]
    with pytest.raises(DeviceError, match="no numbers"):
        choose(WORK, [Timing(size=1, seconds={"first": 2.0, "second": 1.0}, refused=["first", "second"])], 2.0)


def test_results_that_agree() -> None:
    numbers = np.linspace(-3, 3, 100, dtype=np.float32)
    assert agree(numbers, numbers)
    assert agree(numbers + np.float32(0.01), numbers)
    assert not agree(numbers + np.float32(0.1), numbers)
    for wrong in (np.nan, np.inf):
        spoiled = numbers.copy()
        spoiled[7] = wrong
        assert not agree(spoiled, numbers)
        assert not agree(spoiled, spoiled), "what is no number agrees with nothing"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"{", "no file of `engine tune`"),
        (b'{"version": 1}', "no file of `engine tune`"),
        (b'{"version": 99, "target": "sm90", "device": "x", "choices": {}}', "version 99"),
        (b'{"version": 1, "target": "sm80", "device": "x", "choices": {}}', "is for sm80"),
        (b"[" * 100_000, "no file of `engine tune`"),
    ],
)
def test_files_that_are_none(content: bytes | None, message: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        build_artifact(
            BuildOptions(model=str(tiny_checkpoint), output=tmp_path / "out", target="sm90", tuned=file, store=tmp_path / "store")
        )


@pytest.mark.parametrize("tuned", [False, True])
def test_cpu_targets_are_not_tuned(tuned: bool, tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"version": 1, "target": "cpu-x86-64-v3", "device": "x", "choices": {}}))
    options = BuildOptions(
        model=str(tiny_checkpoint), output=tmp_path / "out", store=tmp_path / "store", tunable=not tuned, tuned=file if tuned else None
    )
    with pytest.raises(UsageError, match="NVIDIA"):
        build_artifact(options)


@pytest.mark.slow
def test_choices_of_another_version(tunable: Tunable, tmp_path: Path) -> None:
    name = next(iter(tunable.problems()))
    (tmp_path / "tuned.json").write_text(
        json.dumps({"version": 1, "target": "sm90", "device": "x", "choices": {name: [[None, "by hand"]]}})
    )
    with pytest.raises(AssertionError, match="no candidate 'by hand'"):
        build(tunable.checkpoint, tmp_path, "--weights", "none", "--tuned", str(tmp_path / "tuned.json"))

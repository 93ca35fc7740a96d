"""Window groups on a real artifact: whatever the load, the same bits as alone, and nothing is read that was given back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from random_checkpoints import VOCAB_SIZE, write_random_checkpoint

from engine.artifacts import load_manifest
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.options.runtime import RuntimeOptions
from engine.protocol import SamplingParams, Stats, Submit
from engine.runtime import executor as executor_module
from engine.runtime.core import EngineCore
from engine.runtime.executor import Executor
from engine.runtime.memory import Memory

BLOCK_SIZE = 32
NUM_BLOCKS = 24
Answer = list[tuple[int, float, list[tuple[int, float]]]]


class Artifact:
    """A loaded model, one layer of which sees all tokens and two a window. caches: its tensors, by name."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.caches: dict[str, NDArray[np.float32]] = {}
        allocate = executor_module._allocate_kv

        def remembered(*arguments: object) -> dict[str, Memory]:
            found = allocate(*arguments)  # type: ignore[arg-type]
            self.caches = {name: memory.data.view(np.float32).reshape(memory.shape) for name, memory in found.items()}
            return found

        patch.setattr(executor_module, "_allocate_kv", remembered)
        manifest = load_manifest(directory)
        memory = sum(NUM_BLOCKS * group.bytes_per_block for group in manifest.caches)
        self.executor = Executor.load(directory, manifest, kv_memory=memory, max_batch_tokens=4096)
        assert self.executor.pools == {"full": NUM_BLOCKS, "window": NUM_BLOCKS}

    def poison(self, core: EngineCore) -> None:
        """What is in free blocks becomes NaN."""
        for manager in core._caches.managers:
            pool = manager.pool
            free = [block for block in range(pool.num_blocks) if pool._references[block] == 0 and pool._digests[block] is None]
            for tensor in manager.group.tensors:
                self.caches[tensor][free] = np.nan

    def run(self, submits: list[Submit], **options: Any) -> tuple[dict[str, Answer], int, int]:
        """Everything each request got, how often one was preempted, and how many prompt tokens were found in the cache."""
        core = EngineCore(self.executor, RuntimeOptions(**options))
        stats = Stats()
        answers: dict[str, Answer] = {submit.id: [] for submit in submits}
        for submit in submits:
            core.submit(submit)
        while core.has_work():
            self.poison(core)
            done = core.step()
            stats = done.stats
            core.check()
            for output in done.outputs:
                assert output.error is None
                answers[output.id] += [(token, p.logprob, p.top) for token, p in zip(output.tokens, output.logprobs, strict=True)]
        return answers, stats.preemptions_total, stats.prefix_hit_tokens_total


@pytest.fixture(scope="module", params=[7, 32, 200], ids=["smaller than a block", "a block", "larger than the prompts"])
def artifact(request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    directory = tmp_path_factory.mktemp("window")
    checkpoint = write_random_checkpoint("qwen2", directory / "model", sliding_window=request.param, max_window_layers=1)
    build(BuildOptions(model=str(checkpoint), output=directory / "artifact", store=store))
    groups = {group.name: (group.window, group.layers) for group in load_manifest(directory / "artifact").caches}
    assert groups == {"full": (0, [0]), "window": (request.param, [1, 2])}
    with pytest.MonkeyPatch.context() as patch:
        yield Artifact(directory / "artifact", patch)


def submits(*, shared: int = 0) -> list[Submit]:
    """Prompts of different lengths, the first `shared` tokens of which are the same."""
    random = np.random.default_rng(0)
    prefix = random.integers(3, VOCAB_SIZE, shared).tolist()
    return [
        Submit(
            str(index),
            [*prefix, *random.integers(3, VOCAB_SIZE, length).tolist()],
            SamplingParams(max_tokens=60, temperature=0.8 * (index % 2), seed=index, logprobs=2, ignore_eos=True),
        )
        for index, length in enumerate((70, 3, 33, 64, 100))
    ]


def alone(artifact: Artifact, requests: list[Submit]) -> dict[str, Answer]:
    """Each by itself, its prompt in one step."""
    answers: dict[str, Answer] = {}
    for request in requests:
        answers |= artifact.run([request], max_num_seqs=1, max_batch_tokens=512)[0]
    return answers


@pytest.mark.parametrize(("max_num_seqs", "max_batch_tokens"), [(5, 512), (3, 16), (2, 7)], ids=["batch", "chunks", "small chunks"])
def test_a_batch_and_chunks_change_no_bit(artifact: Artifact, max_num_seqs: int, max_batch_tokens: int) -> None:
    requests = submits()
    got, _, _ = artifact.run(requests, max_num_seqs=max_num_seqs, max_batch_tokens=max_batch_tokens)
    assert got == alone(artifact, requests)


def test_preemption_changes_no_bit(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = submits()
    expected = alone(artifact, requests)
    monkeypatch.setattr(artifact.executor, "pools", dict.fromkeys(artifact.executor.pools, 8))
    got, preemptions, _ = artifact.run(requests, max_num_seqs=5, max_batch_tokens=64)
    assert preemptions > 0
    assert got == expected


def test_a_prefix_hit_changes_no_bit(artifact: Artifact) -> None:
    requests = submits(shared=75)
    got, _, hits = artifact.run(requests, max_num_seqs=1, max_batch_tokens=64)
    assert hits >= 4 * 64
    assert got == alone(artifact, requests)

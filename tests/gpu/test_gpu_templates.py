"""A graph made of a template against the same launches without one: one by one, and as the driver captures them.

Capturing is what other engines do at every start; here is shown that a template is what a capture
would have been: the same kernels, grids and arguments in the same order, and the same bits.
"""

from collections.abc import Callable

import numpy as np
import pytest
from captured import Step
from gpu_artifacts import Built, rows
from gpu_steps import BLOCK_SIZE, Chunk, step_inputs
from numpy.typing import NDArray

from engine.runtime.cuda.buckets import Buckets
from engine.runtime.cuda.executor import CudaExecutor

MOST = 8
LENGTHS = [9, 600, 33, 150, 64, 311, 2, 270]
"""Of the prompts, so that some sequences are split among many programs; the interpreter gets a few short ones."""
SMALL_LENGTHS = [9, 33, 5]


def chunk(index: int, length: int, *, decode: bool) -> Chunk:
    """The whole of a sequence, or its last token."""
    tokens = np.random.default_rng(index).integers(3, 300, length).tolist()
    return Chunk(tokens, length - 1 if decode else 0, [index + 1 + MOST * place for place in range(-(-length // BLOCK_SIZE))])


@pytest.fixture
def lengths(stand_in: bool) -> list[int]:
    return SMALL_LENGTHS if stand_in else LENGTHS


@pytest.fixture
def executor(built: Built, load: Callable[..., CudaExecutor], lengths: list[int], stand_in: bool) -> CudaExecutor:
    """With the keys and values of all prompts in its cache."""
    executor = load(built, max_num_seqs=MOST, max_batch_tokens=64 if stand_in else 2048)
    rows(executor, step_inputs([chunk(index, length, decode=False) for index, length in enumerate(lengths)]))
    return executor


STEPS = {"decode-1": (1, True), "decode-4, one row to spare": (3, True), "decode-8": (8, True), "mixed": (3, False)}
"""Sequences, and whether each has one new token or all are new."""


@pytest.mark.parametrize("name", STEPS)
def test_a_template_is_what_a_capture_would_be(executor: CudaExecutor, lengths: list[int], name: str) -> None:
    sequences, is_decode = STEPS[name]
    if sequences > len(lengths):
        pytest.skip("too many for the interpreter")
    inputs = step_inputs([chunk(index, length, decode=is_decode) for index, length in enumerate(lengths[:sequences])])
    step = Step(executor, Buckets(executor.manifest.graphs).choose(inputs.tokens, sequences))
    graph = executor.prepare(inputs)

    def results() -> NDArray[np.uint32]:
        computed = executor.collect(graph, sequences)
        return np.stack([np.asarray(computed[row]) for row in range(sequences)]).view(np.uint32)

    step.poison()
    executor.device.driver.call("cuGraphLaunch", graph.handle, executor.stream.handle)
    from_template = results()
    step.poison()
    step.launch_one_by_one()
    one_by_one = results()
    with step.capture() as captured:
        assert step.captured_nodes(captured) == step.nodes()
        step.poison()
        step.launch(captured)
        from_capture = results()
    assert np.isfinite(from_template.view(np.float32)).all()
    assert np.array_equal(from_template, one_by_one)
    assert np.array_equal(from_template, from_capture)


def test_every_graph_can_be_made(built: Built, load: Callable[..., CudaExecutor]) -> None:
    """All sizes of the artifact; each holds as many launches as the manifest says."""
    executor = load(built, max_num_seqs=256, max_batch_tokens=2048)
    executor.graphs.wait()
    graphs = executor.manifest.graphs
    assert executor.graphs.made == set(range(len(graphs)))
    assert [len(executor.graphs.resolve(number)[0].nodes) for number in range(len(graphs))] == [info.nodes for info in graphs]

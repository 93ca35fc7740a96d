"""The executor holds no more than the program says."""

import weakref
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.artifacts import load_manifest
from engine.runtime.executor import Executor, Run
from engine.runtime.probe import whole_prompt


def test_activations_are_freed_after_their_last_use(tiny_artifact: Path) -> None:
    spec = load_manifest(tiny_artifact).kv_cache
    executor = Executor.load(tiny_artifact, kv_memory=8 * spec.bytes_per_block)
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    for bound in executor._calls:

        def run(arguments: Sequence[torch.Tensor], inner: Run = bound.run) -> Sequence[torch.Tensor]:
            outputs = list(inner(arguments))
            made.extend(map(weakref.ref, outputs))
            alive.append(sum(value() is not None for value in made))
            return outputs

        bound.run = run

    executor.step(whole_prompt(list(range(40)), spec.block_size))
    expected, live = [], 0
    for call in executor.manifest.program.calls:
        live += len(call.outputs)
        expected.append(live)
        live -= len(call.frees)
    assert alive == expected
    assert max(alive) < len(made)

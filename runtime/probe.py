"""The golden probe: fixed prompts whose largest logits are known, run before the first user.

Replaying one catches wrong hardware, a damaged file or a miscompile in milliseconds.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..artifacts import CacheGroup, Manifest
from ..artifacts.step_arrays import step_arrays, whole_prompts
from ..errors import ArtifactError, UsageError
from .batch import StepInputs
from .sampling.sampler import Logits

TOLERANCE = {"target": 1e-3, "reference": 3e-2}
"""Largest accepted difference, relative to the largest recorded logit, by where it was recorded. The
target's own code computes the same everywhere. References round floats differently, and where that
tips the rounding of a quantized activation, the difference is a step of 1/127 of it. Both are far
below what a wrong weight would cause."""

Step = Callable[[StepInputs], Logits]


def whole_prompt(
    tokens: list[int], groups: Sequence[CacheGroup], *, wanted: Sequence[int] | None = None, pair_start: int = 0
) -> StepInputs:
    """Inputs of one step that runs a whole prompt in blocks 0, 1, 2, ... of empty caches. wanted, pair_start: as in `Piece`."""
    sizes = {group.name: group.block_size for group in groups}
    (piece,) = whole_prompts([tokens], sizes, wanted=wanted)
    return StepInputs(step_arrays([piece._replace(pair_start=pair_start)], sizes))


def replay(manifest: Manifest, step: Step, pools: Mapping[str, int]) -> None:
    """Run the shortest probe prompt in the first blocks of each cache group. pools: how many each has.

    Raises ArtifactError if its logits are not the recorded ones, UsageError if the KV cache is too small for it.
    """
    golden = manifest.probe.shortest
    if golden is None:
        return
    for group in manifest.caches:
        if len(golden.tokens) > pools[group.name] * group.block_size:
            raise UsageError(
                f"the KV cache holds {pools[group.name]} blocks, too few for the golden probe", hint="give more with --kv-memory"
            )
    logits = step(whole_prompt(golden.tokens, manifest.caches, wanted=manifest.wanted_rows))[0]
    difference = float(np.abs(logits[golden.top_tokens] - np.array(golden.top_logits)).max())
    allowed = TOLERANCE[manifest.probe.recorded_on] * max(abs(value) for value in golden.top_logits)
    if not difference <= allowed:  # also true for NaN
        raise ArtifactError(
            f"the golden probe failed: {manifest.result} differ from the recorded ones by {difference:.3g} (allowed {allowed:.3g})",
            hint="the weights are damaged or this processor miscomputes: run `engine verify DIR`, then build or copy the artifact again",
        )

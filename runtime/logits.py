"""An artifact's logits for given token ids, in a process that holds nothing but the runtime.

    python -m engine.runtime.logits DIR OUTPUT < prompts.json

Reads [[token, ...], ...] from stdin and writes OUTPUT, a safetensors file with one tensor
[len(prompt), V] float32 per prompt, named by its index: row i holds the logits after token i.
With --last only the last row is computed, in one prefill; of a model that makes vectors or scores it is what
pooling gives. This is how a build records the golden
probe and how `engine verify --against` compares, without compiler and runtime ever meeting.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ..artifacts.step_arrays import step_arrays, whole_prompts
from ..errors import EngineError
from .batch import StepInputs
from .loading import load_executor
from .probe import whole_prompt
from .step import StepExecutor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--last", action="store_true", help="only the logits after each prompt's last token")
    parser.add_argument("--pair-starts", type=int, nargs="*", help="with --last: where the second text of each prompt begins, or 0")
    options = parser.parse_args()
    try:
        prompts: list[list[int]] = json.load(sys.stdin)
        longest = max(map(len, prompts))
        executor = load_executor(options.artifacts, kv_memory=_kv_memory(options.artifacts, longest), max_batch_tokens=longest)
        if options.last:
            starts = options.pair_starts or [0] * len(prompts)
            rows = [_last(executor, prompt, start) for prompt, start in zip(prompts, starts, strict=True)]
        else:
            rows = [_every_position(executor, prompt) for prompt in prompts]
        save_file({str(index): found for index, found in enumerate(rows)}, options.output)
    except EngineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _kv_memory(artifacts: Path, longest: int) -> int | None:
    from ..artifacts import load_manifest

    caches = load_manifest(artifacts).caches
    return sum((-(-longest // group.block_size) + 2) * group.bytes_per_block for group in caches) if caches else None


def _last(executor: StepExecutor, prompt: list[int], pair_start: int) -> NDArray[np.float32]:
    manifest = executor.manifest
    return executor.step(whole_prompt(prompt, manifest.caches, wanted=manifest.wanted_rows, pair_start=pair_start))[0][None]


def _every_position(executor: StepExecutor, prompt: list[int]) -> NDArray[np.float32]:
    sizes = {group.name: group.block_size for group in executor.manifest.caches}
    (whole,) = whole_prompts([prompt], sizes)
    steps = (whole._replace(tokens=prompt[: place + 1], start=place) for place in range(len(prompt)))
    return np.stack([executor.step(StepInputs(step_arrays([piece], sizes)))[0] for piece in steps])


if __name__ == "__main__":
    sys.exit(main())

"""An artifact's logits for given token ids, in a process that holds nothing but the runtime.

    python -m engine.runtime.logits DIR OUTPUT < prompts.json

Reads [[token, ...], ...] from stdin and writes OUTPUT, a safetensors file with one tensor
[len(prompt), V] float32 per prompt, named by its index: row i holds the logits after token i.
With --last only the last row is computed, in one prefill. This is how a build records the golden
probe and how `engine verify --against` compares, without compiler and runtime ever meeting.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

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
    options = parser.parse_args()
    try:
        prompts: list[list[int]] = json.load(sys.stdin)
        longest = max(map(len, prompts))
        executor = load_executor(options.artifacts, kv_memory=_kv_memory(options.artifacts, longest), max_batch_tokens=longest)
        compute = _last if options.last else _every_position
        save_file({str(index): compute(executor, prompt) for index, prompt in enumerate(prompts)}, options.output)
    except EngineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _kv_memory(artifacts: Path, longest: int) -> int:
    from ..artifacts import load_manifest

    spec = load_manifest(artifacts).kv_cache
    return (-(-longest // spec.block_size) + 2) * spec.bytes_per_block


def _last(executor: StepExecutor, prompt: list[int]) -> NDArray[np.float32]:
    return executor.step(whole_prompt(prompt, executor.manifest.kv_cache.block_size))[0][None]


def _every_position(executor: StepExecutor, prompt: list[int]) -> NDArray[np.float32]:
    whole = whole_prompt(prompt, executor.manifest.kv_cache.block_size)
    return np.stack([executor.step(_one_token(whole, index))[0] for index in range(len(prompt))])


def _one_token(whole: StepInputs, index: int) -> StepInputs:
    here = slice(index, index + 1)
    return StepInputs(
        tokens=whole.tokens[here],
        positions=whole.positions[here],
        query_start=np.array([0, 1], np.int32),
        seq_lens=np.array([index + 1], np.int32),
        block_table=whole.block_table,
        slots=whole.slots[here],
    )


if __name__ == "__main__":
    sys.exit(main())

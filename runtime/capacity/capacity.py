"""What an artifact will take of a machine's memory and how much it will serve there, said beforehand: no weights, no device."""

import math
from collections.abc import Callable, Sequence

import msgspec

from ...artifacts import Manifest
from ...artifacts.nvidia_target import CAPABILITIES
from ...errors import DeviceError, UsageError
from ...options.runtime import RuntimeOptions
from ..cuda import block_count
from ..cuda.buckets import Buckets
from . import kv_memory


class ContextFit(msgspec.Struct, frozen=True, kw_only=True):
    """Sequences of `tokens`, prompt and answer together.

    sequences: how many the KV cache holds at once. running: how many of those are computed together.
    least_memory: bytes that one of them needs, everything else included.
    """

    tokens: int
    blocks: int
    sequences: int
    running: int
    least_memory: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """In bytes, blocks and tokens. memory: what there is. blocks: of the KV cache, 0 if the artifact cannot be served in it.

    step_bytes: activations and logits of the largest step. least_memory: in which serving starts at all.
    """

    model: str
    target: str
    memory: int
    max_num_seqs: int
    max_batch_tokens: int
    weight_bytes: int
    code_bytes: int
    step_bytes: int
    kv_dtype: str
    bytes_per_block: int
    tokens_per_block: int
    blocks: int
    tokens: int
    kv_bytes: int
    least_memory: int
    contexts: list[ContextFit]

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def plan(manifest: Manifest, memory: int, options: RuntimeOptions, contexts: Sequence[int] | None = None) -> Plan:
    """Plan for `memory` bytes that are free when the server's processes have started. contexts: lengths to look at.

    Raises UsageError for a context that the artifact does not have, and for limits that it has no graphs for.
    """
    longest, (spec,) = manifest.model.max_context, manifest.caches
    for tokens in contexts or ():
        if tokens > longest:
            raise UsageError(f"--context {tokens} is longer than the artifact's {longest}", hint="leave it out, or give a shorter one")
    step = _step_bytes(manifest, options)
    blocks_in = _counting(manifest, step, options)
    blocks = blocks_in(memory)

    def fit(tokens: int) -> ContextFit:
        each = -(-tokens // spec.block_size)
        sequences = blocks // each
        return ContextFit(
            tokens=tokens,
            blocks=each,
            sequences=sequences,
            running=min(sequences, options.max_num_seqs),
            least_memory=_least_memory(manifest, step, blocks_in, each),
        )

    return Plan(
        model=manifest.model.name,
        target=manifest.target,
        memory=memory,
        max_num_seqs=options.max_num_seqs,
        max_batch_tokens=options.max_batch_tokens,
        weight_bytes=manifest.memory.weight_bytes,
        code_bytes=sum(manifest.files[name].bytes for name in manifest.code_files),
        step_bytes=step,
        kv_dtype=spec.dtype,
        bytes_per_block=spec.bytes_per_block,
        tokens_per_block=spec.block_size,
        blocks=blocks,
        tokens=blocks * spec.block_size,
        kv_bytes=blocks * spec.bytes_per_block,
        least_memory=_least_memory(manifest, step, blocks_in, 1),
        contexts=[fit(tokens) for tokens in contexts or _usual_contexts(longest)],
    )


def check(planned: Plan) -> None:
    """Raise UsageError, with what would do, if the artifact cannot be served in the memory, or not one sequence of a length asked for."""
    if not planned.blocks:
        raise UsageError(
            f"{planned.memory:,} bytes are too little for {planned.model}: it takes {planned.least_memory:,} at least",
            hint="lower --max-batch-tokens and --max-num-seqs, or build it with smaller weights (--quantize)",
        )
    for context in planned.contexts:
        if not context.sequences:
            raise UsageError(
                f"not one sequence of {context.tokens:,} tokens fits into {planned.memory:,} bytes: {context.least_memory:,} are needed",
                hint="give more memory, or build the artifact with --kv-dtype int8 or a shorter --max-context",
            )


def _usual_contexts(longest: int) -> list[int]:
    return sorted({max(1, longest // divisor) for divisor in (16, 4, 1)})


def _step_bytes(manifest: Manifest, options: RuntimeOptions) -> int:
    if manifest.target not in CAPABILITIES:
        return kv_memory.step_bytes(manifest, max_num_seqs=options.max_num_seqs, max_batch_tokens=options.max_batch_tokens)
    largest = max(options.max_batch_tokens, block_count.probe_tokens(manifest))
    wanted = Buckets(manifest.graphs).within(options.max_num_seqs, largest)
    return max(manifest.graphs[number].workspace_bytes for number in wanted)


def _counting(manifest: Manifest, step: int, options: RuntimeOptions) -> Callable[[int], int]:
    """Bytes of memory to blocks of the KV cache, as the runtime counts them; 0 where it would refuse to start."""

    def count(memory: int) -> int:
        try:
            if manifest.target in CAPABILITIES:
                return block_count.count_blocks(manifest, None, memory - manifest.memory.weight_bytes - step)
            limits = {"max_num_seqs": options.max_num_seqs, "max_batch_tokens": options.max_batch_tokens}
            return kv_memory.count_blocks(manifest, None, **limits, free=memory)
        except (UsageError, DeviceError):
            return 0

    return count


def _least_memory(manifest: Manifest, step: int, blocks_in: Callable[[int], int], blocks: int) -> int:
    """The least memory that gives that many blocks, and that the golden probe has enough in."""
    (spec,) = manifest.caches
    share = block_count.FREE_MEMORY_SHARE if manifest.target in CAPABILITIES else kv_memory.FREE_MEMORY_SHARE
    if manifest.target in CAPABILITIES:
        blocks = max(blocks, -(-block_count.probe_tokens(manifest) // spec.block_size))
    memory = manifest.memory.weight_bytes + step + math.ceil(blocks * spec.bytes_per_block / share)
    while blocks_in(memory) < blocks:  # a share is a float: the last byte may be missing
        memory += 1
    return memory

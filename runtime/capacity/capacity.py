"""What an artifact will take of a machine's memory and how much it will serve there, said beforehand: no weights, no device."""

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from ...artifacts import CacheGroup, Manifest
from ...errors import DeviceError, UsageError
from ...options.runtime import RuntimeOptions
from ..caches.geometry import blocks_for, most_held
from ..kinds.choose import kind_of
from .pools import pool_bytes, sizes_for


class ContextFit(msgspec.Struct, frozen=True, kw_only=True):
    """Sequences of `tokens`, prompt and answer together.

    blocks: that each holds, by cache group. sequences: how many the caches hold at once; of an encoder, which has none, as many as a
    step takes. running: how many of those are computed together. least_memory: bytes that one of them needs, everything else included.
    """

    tokens: int
    blocks: dict[str, int]
    sequences: int
    running: int
    least_memory: int


class GroupCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """One cache group: what its pool of `blocks` takes. window: tokens that a token sees, 0 for all."""

    name: str
    layers: int
    window: int
    dtype: str
    bytes_per_block: int
    tokens_per_block: int
    blocks: int
    bytes: int


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """In bytes, blocks and tokens. memory: what there is. blocks: of all cache groups, 0 if the artifact cannot be served in it.

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
    groups: list[GroupCapacity]
    blocks: int
    kv_bytes: int
    least_memory: int
    contexts: list[ContextFit]

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def capacity(manifest: Manifest, memory: int, options: RuntimeOptions, contexts: Sequence[int] | None = None) -> Capacity:
    """What fits into `memory` bytes that are free when the server's processes have started. contexts: lengths to look at.

    Raises UsageError for a context that the artifact does not have, and for limits that it has no graphs for.
    """
    longest, groups = manifest.model.max_context, manifest.caches
    for tokens in contexts or ():
        if tokens > longest:
            raise UsageError(f"--context {tokens} is longer than the artifact's {longest}", hint="leave it out, or give a shorter one")
    step = kind_of(manifest).step_bytes(manifest, options)
    pools_in = _counting(manifest, options)
    pools = pools_in(memory)

    def fit(tokens: int) -> ContextFit:
        each = {group.name: most_held(group, tokens) for group in groups}
        sequences = min((pools[name] // count for name, count in each.items()), default=options.max_num_seqs)
        return ContextFit(
            tokens=tokens,
            blocks=each,
            sequences=sequences,
            running=min(sequences, options.max_num_seqs),
            least_memory=_least_memory(manifest, step, pools_in, each, options),
        )

    return Capacity(
        model=manifest.model.name,
        target=manifest.target,
        memory=memory,
        max_num_seqs=options.max_num_seqs,
        max_batch_tokens=options.max_batch_tokens,
        weight_bytes=manifest.memory.weight_bytes,
        code_bytes=sum(manifest.files[name].bytes for name in manifest.code_files),
        step_bytes=step,
        groups=[_group(group, pools[group.name]) for group in groups],
        blocks=sum(pools.values()),
        kv_bytes=pool_bytes(groups, pools),
        least_memory=_least_memory(manifest, step, pools_in, {group.name: 1 for group in groups}, options),
        contexts=[fit(tokens) for tokens in contexts or _usual_contexts(longest)],
    )


def check(found: Capacity, manifest: Manifest, asked: Sequence[int]) -> None:
    """Raise UsageError, with what would do, if the artifact cannot be served in the memory, or not one sequence of a length asked for."""
    if not found.blocks and (found.groups or found.memory < found.least_memory):
        smaller = ", or build it with smaller weights (--quantize)" if manifest.has_wide_weights else ", or take a smaller model"
        raise UsageError(
            f"{found.memory:,} bytes are too little for {found.model}: it takes {found.least_memory:,} at least",
            hint=f"lower --max-batch-tokens and --max-num-seqs{smaller}",
        )
    for context in found.contexts:
        if context.tokens in asked and not context.sequences:
            raise UsageError(
                f"not one sequence of {context.tokens:,} tokens fits into {found.memory:,} bytes: {context.least_memory:,} are needed",
                hint="give more memory, or build the artifact with --kv-dtype int8 or a shorter --max-context",
            )


def _group(group: CacheGroup, blocks: int) -> GroupCapacity:
    return GroupCapacity(
        name=group.name,
        layers=len(group.layers),
        window=group.window,
        dtype=group.dtype,
        bytes_per_block=group.bytes_per_block,
        tokens_per_block=group.block_size,
        blocks=blocks,
        bytes=blocks * group.bytes_per_block,
    )


def _usual_contexts(longest: int) -> list[int]:
    return sorted({max(1, longest // divisor) for divisor in (16, 4, 1)})


def _counting(manifest: Manifest, options: RuntimeOptions) -> Callable[[int], dict[str, int]]:
    """Bytes of memory to blocks of each cache group, as the runtime counts them; 0 where it would refuse to start."""
    kind = kind_of(manifest)

    def count(memory: int) -> dict[str, int]:
        try:
            return kind.pools(manifest, memory, options)
        except (UsageError, DeviceError):
            return {group.name: 0 for group in manifest.caches}

    return count


def _least_memory(
    manifest: Manifest, step: int, pools_in: Callable[[int], dict[str, int]], blocks: Mapping[str, int], options: RuntimeOptions
) -> int:
    """The least memory that gives so many blocks of each group, and with which the artifact loads at all."""
    kind, groups = kind_of(manifest), manifest.caches
    if manifest.is_encoder:
        return manifest.memory.weight_bytes + step
    least = {group.name: max(blocks[group.name], blocks_for(group, kind.least_tokens(manifest))) for group in groups}
    whole = max(least.values())  # of a group that keeps every token: where windows have enough, all have
    limits = {"max_context": manifest.model.max_context, "max_batch_tokens": options.max_batch_tokens}
    while any((sizes := sizes_for(groups, whole, **limits))[name] < count for name, count in least.items()):
        whole += 1
    memory = manifest.memory.weight_bytes + step + math.ceil(pool_bytes(groups, sizes) / kind.free_memory_share)
    while any(pools_in(memory)[name] < count for name, count in least.items()):  # a share is a float: the last byte may be missing
        memory += 1
    return memory

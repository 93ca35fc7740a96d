"""How many blocks the KV cache gets of the GPU's memory. Needs no GPU to say so."""

from ...artifacts import Manifest
from ...errors import DeviceError, UsageError
from ..capacity.kv_memory import MOST_SLOTS

FREE_MEMORY_SHARE = 0.9
"""Of what weights and the largest step leave free; the rest is for code, graphs and whoever else uses the GPU."""


def probe_tokens(manifest: Manifest) -> int:
    """Tokens of the step that replays the golden probe."""
    golden = manifest.probe.shortest
    return len(golden.tokens) if golden else 1


def count_blocks(manifest: Manifest, kv_memory: int | None, free: int) -> int:
    """Blocks for kv_memory bytes, or for a share of the GPU's free ones.

    Raises UsageError or DeviceError if there would be fewer than the golden probe needs.
    """
    (spec,) = manifest.caches
    least = -(-probe_tokens(manifest) // spec.block_size)
    wanted = int(FREE_MEMORY_SHARE * free) if kv_memory is None else kv_memory
    blocks = min(wanted // spec.bytes_per_block, MOST_SLOTS // spec.block_size)
    if blocks >= least:
        return blocks
    needs = f"the least is {least * spec.bytes_per_block:,} bytes for {least * spec.block_size} tokens"
    if kv_memory is not None:
        raise UsageError(f"--kv-memory {kv_memory:,} bytes holds too little of the KV cache: {needs}", hint="give a few hundred blocks")
    raise DeviceError(
        f"weights and steps leave {free:,} bytes of the GPU's memory free, too little for the KV cache: {needs}",
        hint="free memory of the GPU, or lower --max-batch-tokens and --max-num-seqs",
    )

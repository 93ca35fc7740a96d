"""Capacity for the eyes: what `engine plan DIR` prints."""

from rich.console import Group
from rich.table import Table

from ...artifacts.describe import human_bytes
from .capacity import Capacity, GroupCapacity


def capacity_table(found: Capacity) -> Group:
    """Tables for rich to print: what takes the memory, and how many sequences fit."""
    return Group(_memory(found), _contexts(found))


def _memory(found: Capacity) -> Table:
    table = Table(
        title=f"{found.model} ({found.target}) in {human_bytes(found.memory)}", title_justify="left", title_style="bold", box=None
    )
    table.add_column("what takes memory")
    table.add_column("bytes", justify="right")
    table.add_column("")
    left = max(0, found.memory - found.weight_bytes - found.step_bytes - found.kv_bytes)
    for name, count, what in (
        ("weights", found.weight_bytes, "mapped: workers on one machine share them"),
        ("code", found.code_bytes, "mapped"),
        ("a step", found.step_bytes, f"at most {found.max_batch_tokens:,} tokens of {found.max_num_seqs:,} sequences"),
        *((f"KV cache {group.name}", group.bytes, _blocks(group)) for group in found.groups),
        ("left free", left, ""),
    ):
        table.add_row(name, human_bytes(count), what)
    return table


def _contexts(found: Capacity) -> Table:
    table = Table(title="\nSequences at once", title_justify="left", title_style="bold", box=None)
    held = [f"blocks of {group.name}" for group in found.groups]
    for column in ("prompt plus answer, tokens", *held, "fit", "computed together", "memory for one"):
        table.add_column(column, justify="right")
    for context in found.contexts:
        counts = (context.tokens, *context.blocks.values(), context.sequences, context.running)
        table.add_row(*(f"{count:,}" for count in counts), human_bytes(context.least_memory))
    return table


def _blocks(group: GroupCapacity) -> str:
    seen = f"a window of {group.window:,} tokens" if group.window else "all tokens"
    each = f"{group.tokens_per_block} tokens in {group.dtype}, {human_bytes(group.bytes_per_block)} each"
    return f"{group.blocks:,} blocks of {each}, for {group.layers} layers that see {seen}"

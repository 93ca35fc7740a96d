"""A plan for the eyes: what `engine plan DIR` prints."""

from rich.console import Group
from rich.table import Table

from ...artifacts.describe import human_bytes
from .capacity import Plan


def plan_table(plan: Plan) -> Group:
    """Tables for rich to print: what takes the memory, and how many sequences fit."""
    return Group(_memory(plan), _contexts(plan))


def _memory(plan: Plan) -> Table:
    table = Table(title=f"{plan.model} ({plan.target}) in {human_bytes(plan.memory)}", title_justify="left", title_style="bold", box=None)
    table.add_column("what takes memory")
    table.add_column("bytes", justify="right")
    table.add_column("")
    block = f"{plan.blocks:,} blocks of {plan.tokens_per_block} tokens in {plan.kv_dtype}, {human_bytes(plan.bytes_per_block)} each"
    left = max(0, plan.memory - plan.weight_bytes - plan.step_bytes - plan.kv_bytes)
    for name, count, what in (
        ("weights", plan.weight_bytes, "mapped: workers on one machine share them"),
        ("code", plan.code_bytes, "mapped"),
        ("a step", plan.step_bytes, f"at most {plan.max_batch_tokens:,} tokens of {plan.max_num_seqs:,} sequences"),
        ("KV cache", plan.kv_bytes, f"{block}: {plan.tokens:,} tokens"),
        ("left free", left, ""),
    ):
        table.add_row(name, human_bytes(count), what)
    return table


def _contexts(plan: Plan) -> Table:
    table = Table(title="\nSequences at once", title_justify="left", title_style="bold", box=None)
    for column in ("prompt plus answer, tokens", "blocks of each", "fit", "computed together", "memory for one"):
        table.add_column(column, justify="right")
    for context in plan.contexts:
        counts = (context.tokens, context.blocks, context.sequences, context.running)
        table.add_row(*(f"{count:,}" for count in counts), human_bytes(context.least_memory))
    return table

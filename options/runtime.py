"""What a worker may use. The server takes these flags and gives them to the worker that it starts."""

from dataclasses import dataclass, fields
from typing import Literal

from ..errors import UsageError
from .option import check_choices, option
from .values import COUNT, SIZE

Scheduling = Literal["fair", "fcfs"]


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """What a worker may use. None means: decide on the machine, when the artifact is known. kv_memory is in bytes.

    Raises UsageError for values that cannot work.
    """

    max_num_seqs: int = option(
        64,
        "sequences computed together: more raises total throughput and memory, and slows each one down; the others wait in line",
        **COUNT,
    )
    max_batch_tokens: int = option(
        256,
        "tokens computed per step: more makes the pauses longer that long prompts cause in running answers; "
        "fewer than about 128 make prompts slower to compute",
        **COUNT,
    )
    kv_memory: int | None = option(
        None,
        "bytes for the KV cache: more holds more and longer sequences, and reuses more prefixes. All of it is used in time "
        "(default: at most half of the free memory, taken as running sequences need it; for prefixes of ended ones no more than "
        "one full context takes; on a GPU nine tenths of what weights and steps leave free)",
        **SIZE,
    )
    threads: int | None = option(
        None,
        "CPU threads: more than the physical cores gain nothing, fewer leave room for others (default: all physical cores); "
        "an artifact for a GPU takes none",
        **COUNT,
    )

    scheduling: Scheduling = option(
        "fair",
        "whose prompts a step computes: fair gives half to the oldest and the rest to the shortest, so that a short prompt waits for no "
        "long one; fcfs finishes one after the other in the order of arrival. Answers are the same",
        choices=("fair", "fcfs"),
    )

    def __post_init__(self) -> None:
        check_choices(self)
        for each in fields(RuntimeOptions):
            value = getattr(self, each.name)
            if isinstance(value, int) and value < 1:
                raise UsageError(f"{each.name} is {value}, but must be at least 1", hint="leave it out for the default")
        if self.max_num_seqs > self.max_batch_tokens:
            raise UsageError(
                f"max_num_seqs is {self.max_num_seqs}, more than max_batch_tokens ({self.max_batch_tokens})",
                hint="every running sequence needs one token of a step; lower max_num_seqs or raise max_batch_tokens",
            )

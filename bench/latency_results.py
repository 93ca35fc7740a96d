"""What `engine bench latency` measured, as its JSON file has it."""

import msgspec

from .limits import GpuLimits, Limits


class Decode(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of `batch` sequences of `context` tokens. Bytes: what a step must read (step_bytes.py).

    step_s: seconds of each step; compute_s: without planning it and handing its tokens on.
    """

    batch: int
    context: int
    step_s: list[float]
    compute_s: list[float]
    weight_bytes: int
    kv_bytes: int


class Prefill(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from the request of one prompt of `tokens` tokens to its first token, one per run."""

    tokens: int
    first_token_s: list[float]


class LatencyResults(msgspec.Struct, frozen=True, kw_only=True):
    """limits: None where they could not be measured."""

    limits: Limits | GpuLimits | None
    decode: list[Decode]
    prefill: list[Prefill]

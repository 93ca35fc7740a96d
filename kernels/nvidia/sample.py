"""Draws one token per sequence: temperature, top-k, then top-p of what is left, then min-p.

Two launches. The first finds the largest logit, chunks of all rows at once, and reads the 4 V bytes
of each row; a row of temperature 0 takes no more. The second has one program per row, so that rows
walk beside each other. A row that samples is walked twice more, 17 times more than that for top-k
and 18 times for top-p, and each walk reads its 4 V bytes again, which lie in the second cache by
now: a four-way search for the smallest logit that the filter keeps, as an integer in the order of
the floats, takes two bits per walk.
"""

from typing import Any

import triton
import triton.language as tl

from .argmax import argmax_chunks, argmax_of_chunks
from .context import Context, Emit
from .launch import Launch, Tensor

_CHUNK = 8192


@triton.jit
def order_key(values):
    """Integers in the order of float32 values; -0 equals 0."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def key_weight(key, largest, inverse):
    """exp((logit - largest) / temperature) of the logit with this key; zero of a key that no logit has."""
    value = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.where(value == value, tl.exp((value - largest) * inverse), 0.0)


@triton.jit
def load_logits(row, start, vocabulary, CHUNK: tl.constexpr):
    """The logits from `start` on and their ids; -inf past the end, infinity for NaN."""
    i = start + tl.arange(0, CHUNK)
    values = tl.load(row + i, mask=i < vocabulary, other=float("-inf"))
    return tl.where(values != values, float("inf"), values), i


@triton.jit
def threshold(row, vocabulary, largest, inverse, goal, BY_MASS: tl.constexpr, CHUNK: tl.constexpr):
    """The largest key t at which the tokens of keys >= t are `goal` many, or with BY_MASS weigh as much, or more."""
    t = tl.full((), -0x80000000, tl.int32)
    for step in range(16):
        part = tl.full((), 1, tl.int32) << (30 - 2 * step)
        first = 0.0
        second = 0.0
        third = 0.0
        for start in range(0, vocabulary, CHUNK):
            values, i = load_logits(row, start, vocabulary, CHUNK)
            key = order_key(values)
            worth = tl.exp((values - largest) * inverse) if BY_MASS else (i < vocabulary).to(tl.float32)
            first += tl.sum(tl.where(key >= t + part, worth, 0.0), 0)
            second += tl.sum(tl.where(key >= t + 2 * part, worth, 0.0), 0)
            third += tl.sum(tl.where(key >= t + 3 * part, worth, 0.0), 0)
        t += part * ((first >= goal).to(tl.int32) + (second >= goal).to(tl.int32) + (third >= goal).to(tl.int32))
    return t


@triton.jit
def above(row, vocabulary, largest, inverse, t, lowest, CHUNK: tl.constexpr):
    """Of the tokens of keys > t: how many, and what those weigh that are at least `lowest` after scaling. And how many have the key t."""
    count = 0.0
    mass = 0.0
    equal = 0.0
    for start in range(0, vocabulary, CHUNK):
        values, i = load_logits(row, start, vocabulary, CHUNK)
        key = order_key(values)
        z = (values - largest) * inverse
        higher = (key > t) & (i < vocabulary)
        count += tl.sum(higher.to(tl.float32), 0)
        mass += tl.sum(tl.where(higher & (z >= lowest), tl.exp(z), 0.0), 0)
        equal += tl.sum(((key == t) & (i < vocabulary)).to(tl.float32), 0)
    return count, mass, equal


@triton.jit
def pick(row, vocabulary, largest, inverse, t, kept_equals, lowest, target, CHUNK: tl.constexpr):
    """The first id at which the running weight of kept tokens exceeds `target`; the last kept one if none does."""
    running = 0.0
    equals = 0.0
    token = tl.full((), -1, tl.int32)
    last = tl.full((), -1, tl.int32)
    for start in range(0, vocabulary, CHUNK):
        values, i = load_logits(row, start, vocabulary, CHUNK)
        key = order_key(values)
        z = (values - largest) * inverse
        equal = ((key == t) & (i < vocabulary)).to(tl.float32)
        rank = equals + tl.cumsum(equal, 0)
        kept = (i < vocabulary) & ((key > t) | ((key == t) & (rank <= kept_equals))) & (z >= lowest)
        cumulative = running + tl.cumsum(tl.where(kept, tl.exp(z), 0.0), 0)
        here = tl.min(tl.where(kept & (cumulative > target), i, 0x7FFFFFFF), 0)
        token = tl.where((token < 0) & (here < 0x7FFFFFFF), here, token)
        last = tl.maximum(last, tl.max(tl.where(kept, i, -1), 0))
        running = tl.max(cumulative, 0)
        equals += tl.sum(equal, 0)
    return tl.where(token < 0, last, token)


@triton.jit
def sample_kernel(
    logits,
    most,
    index,
    temperature,
    top_k,
    top_p,
    min_p,
    uniform,
    out,
    vocabulary,
    stride,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """One row of logits [S, stride], whose largest ones by chunk are in `most` and `index` [S, chunks]."""
    sequence = tl.program_id(0).to(tl.int64)
    row = logits + sequence * stride
    largest, token = argmax_of_chunks(most, index, sequence, chunks, CHUNKS)
    divisor = tl.load(temperature + sequence)
    if tl.abs(largest) == float("inf"):
        token = tl.full((), -1, tl.int32)
    elif divisor > 0:
        inverse = 1.0 / divisor
        t = tl.full((), -0x80000000, tl.int32)
        kept_equals = tl.full((), float("inf"), tl.float32)
        k = tl.load(top_k + sequence)
        if (k > 0) & (k < vocabulary):
            t = threshold(row, vocabulary, largest, inverse, k.to(tl.float32), False, CHUNK)
            count, _, _ = above(row, vocabulary, largest, inverse, t, float("-inf"), CHUNK)
            kept_equals = k - count
        lowest = tl.log(tl.load(min_p + sequence))
        p = tl.load(top_p + sequence)
        if p < 1:
            _, mass, equal = above(row, vocabulary, largest, inverse, t, lowest, CHUNK)
            weight = key_weight(t, largest, inverse)
            mass += tl.where((equal > 0) & (weight >= tl.exp(lowest)), tl.minimum(kept_equals, equal) * weight, 0.0)
            goal = tl.maximum(p, 1e-9) * mass
            lower = threshold(row, vocabulary, largest, inverse, goal, True, CHUNK)
            _, mass, _ = above(row, vocabulary, largest, inverse, lower, float("-inf"), CHUNK)
            wanted = tl.maximum(tl.ceil((goal - mass) / key_weight(lower, largest, inverse)), 1.0)
            kept_equals = tl.where(lower > t, wanted, tl.minimum(kept_equals, wanted))
            t = tl.maximum(t, lower)
        _, mass, equal = above(row, vocabulary, largest, inverse, t, lowest, CHUNK)
        weight = key_weight(t, largest, inverse)
        mass += tl.where((equal > 0) & (weight >= tl.exp(lowest)), tl.minimum(kept_equals, equal) * weight, 0.0)
        token = pick(row, vocabulary, largest, inverse, t, kept_equals, lowest, tl.load(uniform + sequence) * mass, CHUNK)
    tl.store(out + sequence, token)


def sample(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """logits [S, V], temperature [S] float32, top_k [S] int32, top_p, min_p, uniform [S] float32 -> tokens [S] int32.

    min_p keeps tokens at least so many times as likely as the most likely one, top_k exactly k tokens (0: all),
    top_p the shortest prefix of these whose probability reaches it (1: all); each counts likelier tokens
    first, and lower ids first among equals. Of what is left, in the order of ids, the token is drawn at
    which the running probability exceeds `uniform`, in [0, 1). Temperature 0 takes the lowest index
    of the largest logit. -1 where the largest logit is infinite or any is NaN.
    """
    logits, temperature, top_k, top_p, min_p, uniform = arguments
    find_largest, most, index, chunks = argmax_chunks(logits, context)
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "uniform": uniform}
    sizes = {"vocabulary": logits.shape[1], "stride": logits.strides[0], "chunks": chunks}
    draw = Launch(
        function=sample_kernel,
        grid=(logits.shape[0], 1, 1),
        arguments={"logits": logits, "most": most, "index": index, **given, "out": out, **sizes},
        constants={"CHUNK": min(_CHUNK, triton.next_power_of_2(logits.shape[1])), "CHUNKS": triton.next_power_of_2(chunks)},
        num_warps=16,
    )
    return [find_largest, draw]


EMITTERS: dict[str, Emit] = {"sample": sample}

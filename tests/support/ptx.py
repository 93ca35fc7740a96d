"""Inline PTX for Triton's interpreter: a few instructions on arrays of 32-bit registers, as the PTX manual defines them."""

import re
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

Words = NDArray[np.uint32]


def run(text: str, constraints: str, given: list[Words]) -> list[Words]:
    """What inline PTX leaves in its result registers ($0, $1, ..), given those after them."""
    results = [constraint for constraint in constraints.split(",") if constraint != "r"]
    assert set(constraints.split(",")) == {"=&r", "r"}, "a result could share a register with what is read later"
    registers = {f"${len(results) + index}": words for index, words in enumerate(given)}
    for name, operands in _instructions(text):
        to, *sources = operands
        registers[to] = _INSTRUCTIONS[name](*(_value(source, registers) for source in sources))
    shape = np.broadcast_shapes(*(words.shape for words in given))
    return [np.broadcast_to(registers[f"${index}"], shape) for index in range(len(results))]


def _instructions(text: str) -> list[tuple[str, list[str]]]:
    lines = [line.strip() for line in re.sub(r"[{}]", "", text).split(";")]
    return [(line.split()[0], re.split(r",\s*", line.split(maxsplit=1)[1])) for line in lines if line and not line.startswith(".reg")]


def _value(source: str, registers: dict[str, Words]) -> Words:
    return registers[source] if source in registers else np.array(int(source, 0), np.uint32)


def _permute(a: Words, b: Words, selector: Words) -> Words:
    """Byte i of the result is byte (selector >> 4 i) & 7 of b:a. With the fourth bit of a selector set it would be copies of a sign."""
    both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
    result = np.zeros(np.broadcast_shapes(a.shape, b.shape, selector.shape), np.uint32)
    for i in range(4):
        chosen = selector >> np.uint32(4 * i) & np.uint32(15)
        assert (chosen < 8).all()
        result |= ((both >> (chosen.astype(np.uint64) * np.uint64(8))) & np.uint64(255)).astype(np.uint32) << np.uint32(8 * i)
    return result


def _subtract_bfloat16(a: Words, b: Words) -> Words:
    """Of both halves, rounded to nearest even."""
    a, b = np.broadcast_arrays(a, b)
    first, second = (torch.from_numpy(np.ascontiguousarray(words).view(np.uint16).copy()).view(torch.bfloat16) for words in (a, b))
    return (first.float() - second.float()).bfloat16().view(torch.uint16).numpy().view(np.uint32)


_INSTRUCTIONS: dict[str, Callable[..., Words]] = {
    "mov.b32": lambda a: a,
    "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or,
    "shr.b32": np.right_shift,
    "shl.b32": np.left_shift,
    "prmt.b32": _permute,
    "sub.rn.bf16x2": _subtract_bfloat16,
}

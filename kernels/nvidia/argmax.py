"""The greedy token of each sequence: in two launches, since one row of logits is too much for one program to read quickly."""

from typing import Any

import triton
import triton.language as tl

from .launch import Context, Launch, Tensor, cdiv

_CHUNK = 4096


@triton.jit
def argmax_chunk_kernel(logits, most, index, vocabulary, stride, chunks, CHUNK: tl.constexpr):
    """Of one chunk of a row: the largest logit and the lowest index that has it. NaN counts as infinite."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    i = chunk * CHUNK + tl.arange(0, CHUNK)
    values = tl.load(logits + row * stride + i, mask=i < vocabulary, other=float("-inf"))
    values = tl.where(values != values, float("inf"), values)
    largest = tl.max(values, 0)
    tl.store(most + row * chunks + chunk, largest)
    tl.store(index + row * chunks + chunk, tl.min(tl.where(values == largest, i, 0x7FFFFFFF), 0))


@triton.jit
def argmax_row_kernel(most, index, out, chunks, CHUNKS: tl.constexpr):
    """Over the chunks of one row; -1 where the largest is infinite."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, CHUNKS)
    values = tl.load(most + row * chunks + i, mask=i < chunks, other=float("-inf"))
    largest = tl.max(values, 0)
    found = tl.min(tl.where(values == largest, tl.load(index + row * chunks + i, mask=i < chunks, other=0x7FFFFFFF), 0x7FFFFFFF), 0)
    tl.store(out + row, tl.where(tl.abs(largest) == float("inf"), -1, found))


def argmax(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """logits [S, V] float32 -> [S] int32: the lowest index of the largest logit, -1 where it is infinite or any is NaN."""
    (logits,) = arguments
    rows, vocabulary = logits.shape
    chunks = cdiv(vocabulary, _CHUNK)
    most, index = context.allocate("float32", (rows, chunks)), context.allocate("int32", (rows, chunks))
    sizes = {"vocabulary": vocabulary, "stride": logits.strides[0], "chunks": chunks}
    return [
        Launch(
            function=argmax_chunk_kernel,
            grid=(rows, chunks, 1),
            arguments={"logits": logits, "most": most, "index": index, **sizes},
            constants={"CHUNK": _CHUNK},
        ),
        Launch(
            function=argmax_row_kernel,
            grid=(rows, 1, 1),
            arguments={"most": most, "index": index, "out": out, "chunks": chunks},
            constants={"CHUNKS": triton.next_power_of_2(chunks)},
            num_warps=1,
        ),
    ]

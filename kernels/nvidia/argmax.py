"""The largest logit of each sequence, and where: chunk by chunk, since one row is too much for one program to read quickly."""

import triton
import triton.language as tl

from .context import Context
from .launch import Launch, Size, Tensor, cdiv

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
def argmax_of_chunks(most, index, row, chunks, CHUNKS: tl.constexpr):
    """The largest logit of a row and the lowest index that has it, out of its chunks."""
    i = tl.arange(0, CHUNKS)
    values = tl.load(most + row * chunks + i, mask=i < chunks, other=float("-inf"))
    largest = tl.max(values, 0)
    at = tl.load(index + row * chunks + i, mask=i < chunks, other=0x7FFFFFFF)
    return largest, tl.min(tl.where(values == largest, at, 0x7FFFFFFF), 0)


def argmax_chunks(logits: Tensor, context: Context) -> tuple[Launch, Tensor, Tensor, Size]:
    """logits [S, V] float32: what fills `most` float32 and `index` int32 [S, C], both, and C, the chunks of a row."""
    rows, vocabulary = logits.shape
    chunks = cdiv(vocabulary, _CHUNK)
    most, index = context.allocate("float32", (rows, chunks)), context.allocate("int32", (rows, chunks))
    sizes = {"vocabulary": vocabulary, "stride": logits.strides[0], "chunks": chunks}
    launch = Launch(
        function=argmax_chunk_kernel,
        grid=(rows, chunks, 1),
        arguments={"logits": logits, "most": most, "index": index, **sizes},
        constants={"CHUNK": _CHUNK},
    )
    return launch, most, index, chunks

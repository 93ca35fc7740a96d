"""A small kernel with every kind of parameter, compiled for sm_90 on any machine."""

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.artifacts.graph import Parameter

PARAMETERS: list[Parameter] = ["pointer", "int32", "int64", "float32", "pointer", "pointer"]
"""Of `scale_kernel`; the last two are Triton's own."""


@triton.jit  # type: ignore[untyped-decorator]
def scale_kernel(x, count, at, factor, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """x[at : at + count] becomes itself times factor plus 1; count is at most BLOCK."""
    offsets = tl.arange(0, BLOCK)
    numbers = tl.load(x + at + offsets, offsets < count)
    tl.store(x + at + offsets, numbers * factor + 1, offsets < count)


def compile_scale_kernel() -> bytes:
    """Its cubin."""
    signature = {"x": "*fp32", "count": "i32", "at": "i64", "factor": "fp32", "BLOCK": "constexpr"}
    source = ASTSource(fn=scale_kernel, signature=signature, constexprs={"BLOCK": 128})
    compiled: bytes = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
    return compiled

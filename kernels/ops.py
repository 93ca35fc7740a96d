"""Schemas of our operators, and how they come into torch's dispatcher.

Nothing happens at import. `define()` makes the schemas known (build and run), `load(path)`
adds the native CPU implementations from a kernel library (run), and
`register_fakes()` adds shape functions for tracing (build only).

Legend: T tokens of a step, S sequences of a step, B blocks per sequence, N out features,
K in features, QH / KH query and key-value heads, D head size, V vocabulary.
"""

NAMESPACE = "engine"
QUANTIZED_FORMATS = ("q8_0", "q4_0", "q4_1")
LINEAR_KERNELS = ("dense", *QUANTIZED_FORMATS)

SCHEMAS = (
    # x [T, K] float32, w packed (see linear/formats.py), bias [N] float32 -> [T, N] float32
    *(f"linear_{kernel}(Tensor x, Tensor w, Tensor? bias, int out_features) -> Tensor" for kernel in LINEAR_KERNELS),
    # tokens [T] int32, w packed like a linear of [V, dim] -> [T, dim] float32
    *(f"embedding_{kernel}(Tensor tokens, Tensor w, int dim) -> Tensor" for kernel in LINEAR_KERNELS),
    # q [T, QH, D], k and v [T, KH, D] float32; caches [blocks, KH, block_size, D] float32 or
    # bfloat16; query_start [S+1], seq_lens [S], block_table [S, B], slots [T] int32 -> [T, QH, D]
    "paged_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor query_start,"
    " Tensor seq_lens, Tensor block_table, Tensor slots, float scale, int window) -> Tensor",
)

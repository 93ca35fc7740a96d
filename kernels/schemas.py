"""Schemas of our operators, in torch's language.

Legend: T tokens of a step, S sequences of a step, B blocks per sequence, N out features,
K in features, QH / KH query and key-value heads, D head size, V vocabulary.
"""

from .cut_operators import CUT_OPERATORS
from .formats import FLOAT_KERNELS, FP8_KERNELS, LINEAR_KERNELS, PANEL_KERNELS, PANEL_QUANTIZERS, ROW_KERNELS
from .moe.options import SCHEMA as ROUTE_OPTIONS
from .nvidia.packed_rows import FP8_FORMATS, FP8_STATIC
from .row_operators import ROW_OPERATORS, TWINS

_SCALES = {format: ", Tensor scale" if format == FP8_STATIC else "" for format in FP8_FORMATS}
_ROW_QUANTIZERS = {
    **dict.fromkeys(PANEL_QUANTIZERS.values(), ""),
    **{f"quantize_{format}": scale for format, scale in _SCALES.items()},
}

_LINEAR = "Tensor x, Tensor w, Tensor? bias, Tensor? residual, int out_features, float multiplier"
_MIXED = _LINEAR.replace("int out_features", "str bands")

SCHEMAS = (
    # x [T, K] float32, for other kernels what their quantizer gives (formats.py); w packed (see linear/formats.py);
    # bias [N] and residual [T, N] float32 -> (x w^T + bias) * multiplier + residual, [T, N] float32, every operation rounded on its own
    # of row kernels, x [T, K], residual and result are bfloat16, bias [N] float32
    # of mixed, w has all bands one after another, uint8 [bytes], and N is the sum of theirs (see linear/bands.py)
    *(f"linear_{kernel}({_MIXED if kernel == 'mixed' else _LINEAR}) -> Tensor" for kernel in LINEAR_KERNELS),
    # the same with a result in float32, for the LM head
    *(f"logits_{kernel}({_LINEAR}) -> Tensor" for kernel in (*ROW_KERNELS, *FP8_KERNELS)),
    # x [T, K] bfloat16, of fp8_tensor also its scale [1] float32 -> uint8 [T, row_bytes]: FP8 numbers with scales (see nvidia/fp8.py)
    *(f"quantize_{format}(Tensor x{scale}) -> Tensor" for format, scale in _SCALES.items()),
    # logits [S, V], temperature, top_p, min_p, uniform [S] float32, top_k [S] int32 -> [S] int32: the token drawn; where the temperature
    # is 0, the lowest index of the largest logit; -1 if that is infinite or one is NaN (see nvidia/sample.py)
    "sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor uniform) -> Tensor",
    # x [T, K] float32 -> uint8 [T, ceil(K / 32), 48]: int8 quants with scales (see linear/activations.py)
    "quantize(Tensor x) -> Tensor",
    # x [T, K] float32 -> uint8 [T, row_activation_bytes(K)]: int8 quants with a scale (see linear/activations.py)
    "quantize_rows(Tensor x) -> Tensor",
    # x [T, K] float32 -> [T, K] bfloat16, an odd K made even by a zero (see linear/activations.py)
    "round_bf16(Tensor x) -> Tensor",
    # see row_operators.py; with a quantizer's name, what that would make of the result
    *(operator.schema() for operator in ROW_OPERATORS.values()),
    *(operator.schema(quantizer, scale) for operator in TWINS for quantizer, scale in _ROW_QUANTIZERS.items()),
    # tokens [T] int32, w packed like a linear of [V, dim] -> rows * multiplier, [T, dim] float32, or bfloat16 of row kernels
    *(f"embedding_{kernel}(Tensor tokens, Tensor w, int dim, float multiplier) -> Tensor" for kernel in (*PANEL_KERNELS, *ROW_KERNELS)),
    # mixtures of experts, see moe/reference.py: E experts, P pairs of token and expert, w packed like a linear of [E * N, K], bias [E * N]
    f"route(Tensor logits, Tensor? choice_bias, Tensor? expert_scale, {ROUTE_OPTIONS}) -> Tensor",
    "route_table(Tensor routes, int experts) -> Tensor",
    "sort_routes(Tensor routes, int experts) -> Tensor",
    "equal_order(Tensor x, int experts) -> Tensor",
    "gather_rows(Tensor x, Tensor routes, Tensor order) -> Tensor",
    "weigh_rows(Tensor x, Tensor routes, Tensor order) -> Tensor",
    "experts_linear(Tensor x, Tensor w, Tensor? bias, Tensor order, int experts) -> Tensor",  # of weights that are not packed yet
    *(
        f"experts_{kernel}(Tensor x, Tensor w, Tensor? bias, Tensor order, int out_features, int experts) -> Tensor"
        for kernel in FLOAT_KERNELS
    ),
    # of row kernels x is bfloat16 or FP8 rows, and so is what is said of it above; w has `parts` such weights one after another, whose
    # results stand side by side; gather: rows of x are those of tokens, not of pairs
    *(
        f"experts_{kernel}(Tensor x, Tensor w, Tensor? bias, Tensor order, int out_features, int experts, int parts, bool gather) -> Tensor"
        for kernel in (*ROW_KERNELS, *FP8_KERNELS)
    ),
    "experts_mixed(Tensor x, Tensor w, Tensor? bias, Tensor order, str bands, int experts) -> Tensor",
    "combine_experts(Tensor y, Tensor routes, Tensor order, Tensor? shared, Tensor? gate, Tensor? residual, float multiplier, "
    "bool weighted) -> Tensor",
    # q [T, QH, D], k [T, KH, D], v [T, KH, V] float32; caches [blocks, KH, block_size, D] float32, float16 or bfloat16, or
    # [blocks, KH, block_size, D + 4] int8; cu_seqlens [S+1], seq_lens [S], block_table [S, B], slot_mapping [T] int32;
    # q_norm and k_norm [D], cos and sin [T, R/2], sinks [QH], q_scale [T] float32 -> [T, QH, V] float32; bidirectional
    # attention has neither caches nor what tells where in them; mean_pool: x [T, K] float32 -> [S, K] float32
    # latent attention: q [QH, T, L], q_rope [T, QH, R], latents [T, L + R] float32, one cache [blocks, 1, block_size, L + R] -> [QH, T, L]
    *(operator.schema for operator in CUT_OPERATORS.values()),
    # the same as models have it, which no kernel computes, see attention/op.py
    "expanded_attention(Tensor q, Tensor latents, Tensor key_up, Tensor value_up, Tensor(a!) cache, Tensor cu_seqlens, Tensor seq_lens, "
    "Tensor block_table, Tensor slot_mapping, float scale) -> Tensor",
)

// The attention operators as torch's dispatcher and as plain C know them.

#include "attention_operator.h"

namespace engine {
namespace {

constexpr AttentionForm kPlain{false, false}, kRope{false, true}, kNorm{true, false}, kNormRope{true, true};

template <class... Tensors>
Tensor attend_tensors(AttentionForm form, double scale, int64_t window, double eps, const Tensors&... tensors) {
  const AtenTensorHandle in[] = {tensors.get()...};
  return attend(form, in, scale, window, eps);
}

Tensor paged_attention(Tensor q, Tensor k, Tensor v, Tensor k_cache, Tensor v_cache, Tensor query_start, Tensor seq_lens, Tensor block_table,
                       Tensor slots, double scale, int64_t window) {
  return attend_tensors(kPlain, scale, window, 0, q, k, v, k_cache, v_cache, query_start, seq_lens, block_table, slots);
}

Tensor rope_paged_attention(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor k_cache, Tensor v_cache, Tensor query_start,
                            Tensor seq_lens, Tensor block_table, Tensor slots, double scale, int64_t window) {
  return attend_tensors(kRope, scale, window, 0, q, k, v, cos, sin, k_cache, v_cache, query_start, seq_lens, block_table, slots);
}

Tensor norm_paged_attention(Tensor q, Tensor k, Tensor v, Tensor q_norm, Tensor k_norm, Tensor k_cache, Tensor v_cache, Tensor query_start,
                            Tensor seq_lens, Tensor block_table, Tensor slots, double scale, int64_t window, double eps) {
  return attend_tensors(kNorm, scale, window, eps, q, k, v, q_norm, k_norm, k_cache, v_cache, query_start, seq_lens, block_table, slots);
}

Tensor norm_rope_paged_attention(Tensor q, Tensor k, Tensor v, Tensor q_norm, Tensor k_norm, Tensor cos, Tensor sin, Tensor k_cache,
                                 Tensor v_cache, Tensor query_start, Tensor seq_lens, Tensor block_table, Tensor slots, double scale,
                                 int64_t window, double eps) {
  return attend_tensors(kNormRope, scale, window, eps, q, k, v, q_norm, k_norm, cos, sin, k_cache, v_cache, query_start, seq_lens, block_table,
                        slots);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) {
  m.impl("paged_attention", TORCH_BOX(&paged_attention));
  m.impl("rope_paged_attention", TORCH_BOX(&rope_paged_attention));
  m.impl("norm_paged_attention", TORCH_BOX(&norm_paged_attention));
  m.impl("norm_rope_paged_attention", TORCH_BOX(&norm_rope_paged_attention));
}

}  // namespace engine

using engine::attend;
using engine::return_to_c;

ENGINE_EXPORT aoti_torch_cpu_paged_attention(AtenTensorHandle q, AtenTensorHandle k, AtenTensorHandle v, AtenTensorHandle k_cache,
                                             AtenTensorHandle v_cache, AtenTensorHandle query_start, AtenTensorHandle seq_lens,
                                             AtenTensorHandle block_table, AtenTensorHandle slots, double scale, int64_t window,
                                             AtenTensorHandle* result) {
  const AtenTensorHandle in[] = {q, k, v, k_cache, v_cache, query_start, seq_lens, block_table, slots};
  return return_to_c(result, [&] { return attend(engine::kPlain, in, scale, window, 0); });
}

ENGINE_EXPORT aoti_torch_cpu_rope_paged_attention(AtenTensorHandle q, AtenTensorHandle k, AtenTensorHandle v, AtenTensorHandle cos,
                                                  AtenTensorHandle sin, AtenTensorHandle k_cache, AtenTensorHandle v_cache,
                                                  AtenTensorHandle query_start, AtenTensorHandle seq_lens, AtenTensorHandle block_table,
                                                  AtenTensorHandle slots, double scale, int64_t window, AtenTensorHandle* result) {
  const AtenTensorHandle in[] = {q, k, v, cos, sin, k_cache, v_cache, query_start, seq_lens, block_table, slots};
  return return_to_c(result, [&] { return attend(engine::kRope, in, scale, window, 0); });
}

ENGINE_EXPORT aoti_torch_cpu_norm_paged_attention(AtenTensorHandle q, AtenTensorHandle k, AtenTensorHandle v, AtenTensorHandle q_norm,
                                                  AtenTensorHandle k_norm, AtenTensorHandle k_cache, AtenTensorHandle v_cache,
                                                  AtenTensorHandle query_start, AtenTensorHandle seq_lens, AtenTensorHandle block_table,
                                                  AtenTensorHandle slots, double scale, int64_t window, double eps, AtenTensorHandle* result) {
  const AtenTensorHandle in[] = {q, k, v, q_norm, k_norm, k_cache, v_cache, query_start, seq_lens, block_table, slots};
  return return_to_c(result, [&] { return attend(engine::kNorm, in, scale, window, eps); });
}

ENGINE_EXPORT aoti_torch_cpu_norm_rope_paged_attention(AtenTensorHandle q, AtenTensorHandle k, AtenTensorHandle v, AtenTensorHandle q_norm,
                                                       AtenTensorHandle k_norm, AtenTensorHandle cos, AtenTensorHandle sin,
                                                       AtenTensorHandle k_cache, AtenTensorHandle v_cache, AtenTensorHandle query_start,
                                                       AtenTensorHandle seq_lens, AtenTensorHandle block_table, AtenTensorHandle slots,
                                                       double scale, int64_t window, double eps, AtenTensorHandle* result) {
  const AtenTensorHandle in[] = {q, k, v, q_norm, k_norm, cos, sin, k_cache, v_cache, query_start, seq_lens, block_table, slots};
  return return_to_c(result, [&] { return attend(engine::kNormRope, in, scale, window, eps); });
}

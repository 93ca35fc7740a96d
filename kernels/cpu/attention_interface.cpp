// The attention operators as torch's dispatcher knows them.

#include "attention_operator.h"

namespace engine {
namespace {

template <class... Tensors>
Tensor attend_tensors(AttentionForm form, const AttentionNumbers& numbers, const std::optional<Tensor>& sinks, const Tensors&... tensors) {
  const AtenTensorHandle in[] = {tensors.get()..., sinks.has_value() ? sinks->get() : nullptr};
  return attend(form, std::span(in, sizeof...(tensors) + sinks.has_value()), numbers);
}

Tensor paged_attention(Tensor q, Tensor k, Tensor v, Tensor k_cache, Tensor v_cache, Tensor query_start, Tensor seq_lens, Tensor block_table,
                       Tensor slots, std::optional<Tensor> sinks, double scale, int64_t window, double softcap) {
  return attend_tensors({.norm = false, .rope = false}, {scale, window, softcap, 0}, sinks, q, k, v, k_cache, v_cache, query_start, seq_lens,
                        block_table, slots);
}

Tensor rope_paged_attention(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor k_cache, Tensor v_cache, Tensor query_start,
                            Tensor seq_lens, Tensor block_table, Tensor slots, std::optional<Tensor> sinks, double scale, int64_t window,
                            double softcap) {
  return attend_tensors({.norm = false, .rope = true}, {scale, window, softcap, 0}, sinks, q, k, v, cos, sin, k_cache, v_cache, query_start,
                        seq_lens, block_table, slots);
}

Tensor norm_paged_attention(Tensor q, Tensor k, Tensor v, Tensor q_norm, Tensor k_norm, Tensor k_cache, Tensor v_cache, Tensor query_start,
                            Tensor seq_lens, Tensor block_table, Tensor slots, std::optional<Tensor> sinks, double scale, int64_t window,
                            double softcap, double eps) {
  return attend_tensors({.norm = true, .rope = false}, {scale, window, softcap, eps}, sinks, q, k, v, q_norm, k_norm, k_cache, v_cache,
                        query_start, seq_lens, block_table, slots);
}

Tensor norm_rope_paged_attention(Tensor q, Tensor k, Tensor v, Tensor q_norm, Tensor k_norm, Tensor cos, Tensor sin, Tensor k_cache,
                                 Tensor v_cache, Tensor query_start, Tensor seq_lens, Tensor block_table, Tensor slots,
                                 std::optional<Tensor> sinks, double scale, int64_t window, double softcap, double eps) {
  return attend_tensors({.norm = true, .rope = true}, {scale, window, softcap, eps}, sinks, q, k, v, q_norm, k_norm, cos, sin, k_cache, v_cache,
                        query_start, seq_lens, block_table, slots);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) {
  m.impl("paged_attention", TORCH_BOX(&paged_attention));
  m.impl("rope_paged_attention", TORCH_BOX(&rope_paged_attention));
  m.impl("norm_paged_attention", TORCH_BOX(&norm_paged_attention));
  m.impl("norm_rope_paged_attention", TORCH_BOX(&norm_rope_paged_attention));
}

}  // namespace engine

// The attention operators as torch's dispatcher knows them.

#include "attention_operator.h"

namespace engine {
namespace {

using Optional = std::optional<Tensor>;

AtenTensorHandle handle(const Optional& tensor) { return tensor.has_value() ? tensor->get() : nullptr; }

Tensor attention(Tensor q, Tensor k, Tensor v, Tensor k_cache, Tensor v_cache, Tensor cu_seqlens, Tensor seq_lens, Tensor block_table,
                 Tensor slot_mapping, Optional q_norm, Optional k_norm, Optional cos, Optional sin, Optional sinks, Optional q_scale, double scale,
                 int64_t window, int64_t chunk, double softcap, double eps, bool norm_after_rope) {
  return attend({.q = q.get(),
                 .k = k.get(),
                 .v = v.get(),
                 .k_cache = k_cache.get(),
                 .v_cache = v_cache.get(),
                 .cu_seqlens = cu_seqlens.get(),
                 .seq_lens = seq_lens.get(),
                 .block_table = block_table.get(),
                 .slot_mapping = slot_mapping.get(),
                 .q_norm = handle(q_norm),
                 .k_norm = handle(k_norm),
                 .cos = handle(cos),
                 .sin = handle(sin),
                 .sinks = handle(sinks),
                 .q_scale = handle(q_scale)},
                {.scale = scale, .window = window, .chunk = chunk, .softcap = softcap, .eps = eps, .norm_after_rope = norm_after_rope});
}

Tensor bidirectional_attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, Optional q_norm, Optional k_norm, Optional cos, Optional sin,
                               Optional sinks, Optional q_scale, double scale, int64_t window, int64_t chunk, double softcap, double eps,
                               bool norm_after_rope) {
  return attend_bidirectional({.q = q.get(),
                               .k = k.get(),
                               .v = v.get(),
                               .cu_seqlens = cu_seqlens.get(),
                               .q_norm = handle(q_norm),
                               .k_norm = handle(k_norm),
                               .cos = handle(cos),
                               .sin = handle(sin),
                               .sinks = handle(sinks),
                               .q_scale = handle(q_scale)},
                              {.scale = scale, .window = window, .chunk = chunk, .softcap = softcap, .eps = eps, .norm_after_rope = norm_after_rope});
}

Tensor latent_attention(Tensor q, Tensor q_rope, Tensor latents, Tensor cache, Tensor cu_seqlens, Tensor seq_lens, Tensor block_table,
                        Tensor slot_mapping, double scale) {
  return attend_latent({.q = q.get(),
                        .q_rope = q_rope.get(),
                        .latents = latents.get(),
                        .cache = cache.get(),
                        .cu_seqlens = cu_seqlens.get(),
                        .seq_lens = seq_lens.get(),
                        .block_table = block_table.get(),
                        .slot_mapping = slot_mapping.get()},
                       scale);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) {
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("bidirectional_attention", TORCH_BOX(&bidirectional_attention));
  m.impl("latent_attention", TORCH_BOX(&latent_attention));
}

}  // namespace engine

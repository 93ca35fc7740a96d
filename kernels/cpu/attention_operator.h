// The attention operator behind its two interfaces, torch's dispatcher and plain C.
#pragma once

#include "c_interface.h"

namespace engine {

// Its tensors, in the order of its schema (kernels/cut_operators.py). From q_norm on, null where absent.
struct AttentionTensors {
  AtenTensorHandle q, k, v, k_cache, v_cache, cu_seqlens, seq_lens, block_table, slot_mapping;
  AtenTensorHandle q_norm, k_norm, cos, sin, sinks, q_scale;
};

// Those of attention to a sequence's later keys too, which has no cache.
struct BidirectionalTensors {
  AtenTensorHandle q, k, v, cu_seqlens;
  AtenTensorHandle q_norm, k_norm, cos, sin, sinks, q_scale;
};

// Those of attention to latents: q [heads, tokens, rank], q_rope [tokens, heads, rotated], latents [tokens, rank + rotated].
struct LatentTensors {
  AtenTensorHandle q, q_rope, latents, cache, cu_seqlens, seq_lens, block_table, slot_mapping;
};

// Scalars of the first two, likewise (kernels/attention/options.py says what they mean).
struct AttentionOptions {
  double scale;
  int64_t window, chunk;
  double softcap, eps;
  bool norm_after_rope;
};

// They throw if what they are given does not fit together.
Tensor attend(const AttentionTensors& in, const AttentionOptions& options);
Tensor attend_bidirectional(const BidirectionalTensors& in, const AttentionOptions& options);
// [heads, tokens, rank]
Tensor attend_latent(const LatentTensors& in, double scale);

}  // namespace engine

// The attention operators behind their two interfaces, torch's dispatcher and plain C.
#pragma once

#include <span>

#include "c_interface.h"

namespace engine {

// What is done inside an attention operator before attention itself.
struct AttentionForm {
  bool norm, rope;

  constexpr int64_t tensors() const { return 9 + 2 * norm + 2 * rope; }
};

struct AttentionNumbers {
  double scale;
  int64_t window;
  double softcap, eps;  // eps: of the norm
};

// in: q, k, v; q_norm, k_norm with a norm; cos, sin with rope; k_cache, v_cache, query_start,
// seq_lens, block_table, slots; sinks, or nothing. Throws if they do not fit each other.
Tensor attend(AttentionForm form, std::span<const AtenTensorHandle> in, const AttentionNumbers& numbers);

}  // namespace engine

// The attention operators behind their two interfaces, torch's dispatcher and plain C.
#pragma once

#include "c_interface.h"

namespace engine {

// What is done inside an attention operator before attention itself.
struct AttentionForm {
  bool norm, rope;

  constexpr int64_t tensors() const { return 9 + 2 * norm + 2 * rope; }
};

// in: q, k, v; q_norm, k_norm with a norm; cos, sin with rope; k_cache, v_cache, query_start,
// seq_lens, block_table, slots. Throws if they do not fit each other. eps: of the norm.
Tensor attend(AttentionForm form, const AtenTensorHandle* in, double scale, int64_t window, double eps);

}  // namespace engine

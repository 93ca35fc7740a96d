// One vector of each sequence: the mean of its rows.
#pragma once

#include "op.h"

namespace engine {

// x [tokens, features] float32, cu_seqlens [sequences + 1] and seq_lens [sequences] int32 -> [sequences, features] float32.
// Each column is summed from the first row to the last, then divided. Throws if they do not fit each other.
Tensor mean_of_rows(const Tensor& x, const Tensor& cu_seqlens, const Tensor& seq_lens);

}  // namespace engine

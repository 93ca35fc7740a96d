#include "mean_pool.h"

#include <algorithm>

namespace engine {
namespace {

Tensor mean_pool(Tensor x, Tensor cu_seqlens, Tensor seq_lens) { return mean_of_rows(x, cu_seqlens, seq_lens); }

}  // namespace

Tensor mean_of_rows(const Tensor& x, const Tensor& cu_seqlens, const Tensor& seq_lens) {
  check_rows(x, ScalarType::Float, 2, "x");
  check_contiguous(cu_seqlens, ScalarType::Int, 1, "cu_seqlens");
  check_contiguous(seq_lens, ScalarType::Int, 1, "seq_lens");
  const int64_t sequences = seq_lens.size(0), features = x.size(1), stride = row_stride(x);
  STD_TORCH_CHECK(cu_seqlens.size(0) == sequences + 1, "cu_seqlens does not fit seq_lens");
  const int32_t* const starts = data<int32_t>(cu_seqlens);
  const int32_t* const lengths = data<int32_t>(seq_lens);
  STD_TORCH_CHECK(starts[0] == 0 && starts[sequences] <= x.size(0), "cu_seqlens does not fit the rows");
  for (int64_t s = 0; s < sequences; ++s)
    STD_TORCH_CHECK(lengths[s] > 0 && starts[s + 1] - starts[s] == lengths[s], "sequence ", s, " is not there as a whole");
  Tensor out = empty_floats({sequences, features});
  const float* const from = data<float>(x);
  float* const to = static_cast<float*>(out.data_ptr());
  parallel_for(sequences, 1, threads_for(x.size(0) * features), [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      float* __restrict const sums = to + s * features;
      std::fill_n(sums, features, 0.0f);
      for (int64_t row = starts[s]; row < starts[s + 1]; ++row) {
        const float* __restrict const values = from + row * stride;
        for (int64_t k = 0; k < features; ++k) sums[k] += values[k];
      }
      for (int64_t k = 0; k < features; ++k) sums[k] /= float(lengths[s]);
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) { m.impl("mean_pool", TORCH_BOX(&mean_pool)); }

}  // namespace engine

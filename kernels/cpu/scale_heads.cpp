// Every head of a token times a number of its own.

#include "c_interface.h"
#include "rows.h"

namespace engine {
namespace {

// x [T, H, D], factors [T, H] -> [T, H, D]
Tensor scale_heads(Tensor x, Tensor factors) {
  const HeadsAsRows rows(x);
  const Rows numbers(factors, "factors");
  STD_TORCH_CHECK(numbers.count * rows.heads == rows.count && numbers.features == rows.heads, "factors are not one for each of ", rows.heads, " heads");
  Tensor out = empty_floats({x.size(0), rows.heads, rows.features});
  const FloatRows sink(out, rows.features);
  parallel_for(rows.count, 1, threads_for(rows.count * rows.features), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float factor = numbers.data[row / rows.heads * numbers.stride + row % rows.heads];
      sink.write(row, 0, rows.features, [&](int64_t k) {
        GroupValues values = rows.group(row, k);
        each_vector(values, [&](Vf value, int) { return value * factor; });
        return values;
      });
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) { m.impl("scale_heads", TORCH_BOX(&scale_heads)); }

}  // namespace engine

ENGINE_EXPORT aoti_torch_cpu_scale_heads(AtenTensorHandle x, AtenTensorHandle factors, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::scale_heads(engine::borrow(x), engine::borrow(factors)); });
}

// x + multiplier * y over rows, each operation rounded on its own.

#include "c_interface.h"
#include "rows.h"

namespace engine {
namespace {

Tensor scaled_add(Tensor x, Tensor y, double multiplier) {
  const Rows first(x, "x"), second(y, "y");
  STD_TORCH_CHECK(first.count == second.count && first.features == second.features, "x and y differ in shape");
  const float factor = float(multiplier);
  return map_elements<FloatRows>(first, [&](int64_t row) {
    return [&, row](int64_t k) {
      GroupValues values = first.group(row, k);
      const GroupValues terms = second.group(row, k);
      each_vector(values, [&](Vf value, int v) { return value + factor * terms.part[v]; });
      return values;
    };
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) { m.impl("scaled_add", TORCH_BOX(&scaled_add)); }

}  // namespace engine

ENGINE_EXPORT aoti_torch_cpu_scaled_add(AtenTensorHandle x, AtenTensorHandle y, double multiplier, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::scaled_add(engine::borrow(x), engine::borrow(y), multiplier); });
}

// quantize: float32 rows to the int8 activations that the quantized linears read.

#include "c_interface.h"
#include "rows.h"

namespace engine {
namespace {

Tensor quantize(Tensor x) {
  const Rows rows(x, "x");
  return map_rows<QuantizedRows>(rows, [&](int64_t row) { return [&rows, row](int64_t k) { return rows.group(row, k); }; });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) { m.impl("quantize", TORCH_BOX(&quantize)); }

}  // namespace engine

ENGINE_EXPORT aoti_torch_cpu_quantize(AtenTensorHandle x, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::quantize(engine::borrow(x)); });
}

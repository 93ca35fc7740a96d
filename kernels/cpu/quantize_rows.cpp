// quantize, quantize_rows and round_bf16: float32 rows to the activations that linears read, int8 or bfloat16.

#include "c_interface.h"
#include "rows.h"

namespace engine {
namespace {

template <class Sink>
Tensor convert(Tensor x) {
  const Rows rows(x, "x");
  return map_rows<Sink>(rows, [&](int64_t row) { return [&rows, row](int64_t k) { return rows.group(row, k); }; });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) {
  m.impl("quantize", TORCH_BOX(&convert<QuantizedRows>));
  m.impl("quantize_rows", TORCH_BOX(&convert<QuantizedWholeRows>));
  m.impl("round_bf16", TORCH_BOX(&convert<BFloat16Rows>));
}

}  // namespace engine

ENGINE_EXPORT aoti_torch_cpu_quantize(AtenTensorHandle x, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::convert<engine::QuantizedRows>(engine::borrow(x)); });
}
ENGINE_EXPORT aoti_torch_cpu_quantize_rows(AtenTensorHandle x, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::convert<engine::QuantizedWholeRows>(engine::borrow(x)); });
}
ENGINE_EXPORT aoti_torch_cpu_round_bf16(AtenTensorHandle x, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::convert<engine::BFloat16Rows>(engine::borrow(x)); });
}

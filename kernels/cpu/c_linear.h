// What the linears share: the residual that is added to their result, and their C functions.
#pragma once

#include "c_interface.h"

namespace engine {

// [rows, out_features] float32, whose rows may lie apart; or nothing.
struct Residual {
  const float* data = nullptr;
  int64_t stride = 0;

  Residual(const std::optional<Tensor>& tensor, int64_t rows, int64_t out_features) {
    if (!tensor.has_value()) return;
    check_rows(*tensor, ScalarType::Float, 2, "residual");
    STD_TORCH_CHECK(tensor->size(0) == rows && tensor->size(1) == out_features, "residual is not of the result's shape");
    data = static_cast<const float*>(tensor->data_ptr());
    stride = row_stride(*tensor);
  }
  explicit operator bool() const { return data != nullptr; }
  const float* row(int64_t row) const { return data + row * stride; }
};

inline std::optional<Tensor> borrow_optional(AtenTensorHandle* handle) {
  return handle != nullptr ? std::make_optional(borrow(*handle)) : std::nullopt;
}

}  // namespace engine

// kernel: the last part of the operators' names.
#define ENGINE_C_LINEAR(kernel, linear_function, embedding_function)                                                      \
  ENGINE_EXPORT aoti_torch_cpu_linear_##kernel(AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias,            \
                                               AtenTensorHandle* residual, int64_t out_features, AtenTensorHandle* result) { \
    return engine::return_to_c(result, [&] {                                                                              \
      return linear_function(engine::borrow(x), engine::borrow(w), engine::borrow_optional(bias),                         \
                             engine::borrow_optional(residual), out_features);                                            \
    });                                                                                                                   \
  }                                                                                                                       \
  ENGINE_EXPORT aoti_torch_cpu_embedding_##kernel(AtenTensorHandle tokens, AtenTensorHandle w, int64_t dim,               \
                                                  AtenTensorHandle* result) {                                             \
    return engine::return_to_c(                                                                                           \
        result, [&] { return embedding_function(engine::borrow(tokens), engine::borrow(w), dim); });                      \
  }

// What is added to a row operator's or a linear's result as it is written.
#pragma once

#include "op.h"

namespace engine {

// [rows, features] float32, whose rows may lie apart; or nothing.
struct Residual {
  const float* data = nullptr;
  int64_t stride = 0;

  Residual(const std::optional<Tensor>& tensor, int64_t rows, int64_t features) {
    if (!tensor.has_value()) return;
    check_rows(*tensor, ScalarType::Float, 2, "residual");
    STD_TORCH_CHECK(tensor->size(0) == rows && tensor->size(1) == features, "residual is not of the result's shape");
    data = static_cast<const float*>(tensor->data_ptr());
    stride = row_stride(*tensor);
  }
  explicit operator bool() const { return data != nullptr; }
  const float* row(int64_t row) const { return data + row * stride; }
};

}  // namespace engine

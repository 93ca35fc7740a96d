// What follows the sum of a linear's products: (sum + bias) * multiplier + residual, each operation
// rounded on its own, while the sum is still in a register.
#pragma once

#include "residual.h"
#include "simd.h"

namespace engine {

struct Epilogue {
  const float* bias;
  float multiplier;
  Residual residual;

  Epilogue(const std::optional<Tensor>& bias_tensor, double multiplier, const std::optional<Tensor>& residual_tensor, int64_t rows,
           int64_t out_features)
      : bias(vector_of(bias_tensor, out_features, "bias")), multiplier(float(multiplier)), residual(residual_tensor, rows, out_features) {}

  // The same, of the outputs from `column` on.
  Epilogue from(int64_t column) const {
    Epilogue moved = *this;
    if (bias != nullptr) moved.bias += column;
    if (residual) moved.residual.data += column;
    return moved;
  }

  // A vector of sums, of the outputs from `column` on.
  ENGINE_INLINE Vf apply(Vf sum, int64_t row, int64_t column) const {
    if (bias != nullptr) sum += load(bias + column);
    if (multiplier != 1.0f) sum *= multiplier;
    if (residual) sum += load(residual.row(row) + column);
    return sum;
  }
  ENGINE_INLINE float apply_one(float sum, int64_t row, int64_t column) const {
    if (bias != nullptr) sum += bias[column];
    if (multiplier != 1.0f) sum *= multiplier;
    if (residual) sum += residual.row(row)[column];
    return sum;
  }
};

}  // namespace engine

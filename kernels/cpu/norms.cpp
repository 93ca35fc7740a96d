// RMSNorm and LayerNorm over rows, with what may follow them: a weight, a bias, and a residual
// that is added to the normalized row. Float32 results or, with _quantize, quantized at once.

#include <cmath>

#include "c_interface.h"
#include "residual.h"
#include "rows.h"

namespace engine {
namespace {

// The sum over a row of what `term` makes of each of its vectors. Summed in 32 lanes, k to lane
// k % 32, which are then added as a halving tree: one order on every ISA.
template <class Term>
float sum_of(const Rows& x, int64_t row, const Term& term) {
  GroupValues sum{};
  for (int64_t k = 0; k < x.features; k += kGroup) {
    const GroupValues values = term(x.group(row, k), k);
    each_vector(sum, [&](Vf total, int v) { return total + values.part[v]; });
  }
  for (int width = kGroupVectors / 2; width > 0; width /= 2)
    for (int v = 0; v < width; ++v) sum.part[v] += sum.part[v + width];
  return reduce_add(sum.part[0]);
}

float sum_of_squares(const Rows& x, int64_t row) {
  return sum_of(x, row, [](GroupValues values, int64_t) {
    each_vector(values, [](Vf value, int) { return value * value; });
    return values;
  });
}

float mean_of(const Rows& x, int64_t row) {
  return sum_of(x, row, [](const GroupValues& values, int64_t) { return values; }) / float(x.features);
}

// The sum of (x - mean)^2, in which the lanes past the row's end count nothing.
float sum_of_deviations(const Rows& x, int64_t row, float mean) {
  return sum_of(x, row, [&](GroupValues values, int64_t k) {
    each_vector(values, [&](Vf value, int) { return (value - mean) * (value - mean); });
    if (k + kGroup > x.features) {
      alignas(64) float squares[kGroup];
      std::memcpy(squares, values.part, sizeof(squares));
      std::fill(squares + (x.features - k), squares + kGroup, 0.0f);
      std::memcpy(values.part, squares, sizeof(squares));
    }
    return values;
  });
}

// normalized [* weight] [+ bias] [+ residual], each rounded on its own.
struct Affine {
  const float* weight;
  const float* bias;
  Residual residual;
  int64_t features;

  ENGINE_INLINE void apply(GroupValues& values, int64_t row, int64_t k) const {
    if (weight != nullptr) {
      const GroupValues weights = load_group(weight, k, features);
      each_vector(values, [&](Vf value, int v) { return weights.part[v] * value; });
    }
    if (bias != nullptr) add(values, bias, k);
    if (residual) add(values, residual.row(row), k);
  }

 private:
  ENGINE_INLINE void add(GroupValues& values, const float* from, int64_t k) const {
    const GroupValues added = load_group(from, k, features);
    each_vector(values, [&](Vf value, int v) { return value + added.part[v]; });
  }
};

// weight * (x / sqrt(mean(x^2) + eps)) + residual, arXiv 1910.07467
template <class Sink>
Tensor rms_norm(Tensor x, std::optional<Tensor> weight, std::optional<Tensor> residual, double eps) {
  const Rows rows(x, "x");
  const Affine affine{vector_of(weight, rows.features, "weight"), nullptr, Residual(residual, rows.count, rows.features), rows.features};
  return map_rows<Sink>(rows, [&](int64_t row) {
    const float inverse = 1.0f / std::sqrt(sum_of_squares(rows, row) / float(rows.features) + float(eps));
    return [&, row, inverse](int64_t k) {
      GroupValues values = rows.group(row, k);
      each_vector(values, [&](Vf value, int) { return value * inverse; });
      affine.apply(values, row, k);
      return values;
    };
  });
}

// weight * ((x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps)) + bias + residual, arXiv 1607.06450
template <class Sink>
Tensor layer_norm(Tensor x, std::optional<Tensor> weight, std::optional<Tensor> bias, std::optional<Tensor> residual, double eps) {
  const Rows rows(x, "x");
  const Affine affine{vector_of(weight, rows.features, "weight"), vector_of(bias, rows.features, "bias"),
                      Residual(residual, rows.count, rows.features), rows.features};
  return map_rows<Sink>(rows, [&](int64_t row) {
    const float mean = mean_of(rows, row);
    const float inverse = 1.0f / std::sqrt(sum_of_deviations(rows, row, mean) / float(rows.features) + float(eps));
    return [&, row, mean, inverse](int64_t k) {
      GroupValues values = rows.group(row, k);
      each_vector(values, [&](Vf value, int) { return (value - mean) * inverse; });
      affine.apply(values, row, k);
      return values;
    };
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm<FloatRows>));
  m.impl("rms_norm_quantize", TORCH_BOX(&rms_norm<QuantizedRows>));
  m.impl("layer_norm", TORCH_BOX(&layer_norm<FloatRows>));
  m.impl("layer_norm_quantize", TORCH_BOX(&layer_norm<QuantizedRows>));
}

}  // namespace engine

#define ENGINE_C_NORMS(suffix, sink)                                                                                              \
  ENGINE_EXPORT aoti_torch_cpu_rms_norm##suffix(AtenTensorHandle x, AtenTensorHandle* weight, AtenTensorHandle* residual,         \
                                                double eps, AtenTensorHandle* result) {                                           \
    return engine::return_to_c(result, [&] {                                                                                      \
      return engine::rms_norm<sink>(engine::borrow(x), engine::borrow_optional(weight), engine::borrow_optional(residual), eps);  \
    });                                                                                                                           \
  }                                                                                                                               \
  ENGINE_EXPORT aoti_torch_cpu_layer_norm##suffix(AtenTensorHandle x, AtenTensorHandle* weight, AtenTensorHandle* bias,           \
                                                  AtenTensorHandle* residual, double eps, AtenTensorHandle* result) {             \
    return engine::return_to_c(result, [&] {                                                                                      \
      return engine::layer_norm<sink>(engine::borrow(x), engine::borrow_optional(weight), engine::borrow_optional(bias),          \
                                      engine::borrow_optional(residual), eps);                                                    \
    });                                                                                                                           \
  }
ENGINE_C_NORMS(, engine::FloatRows)
ENGINE_C_NORMS(_quantize, engine::QuantizedRows)

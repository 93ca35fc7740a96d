// RMSNorm and LayerNorm over rows, with what may follow them: a weight, a bias, and a residual
// that is added to the normalized row. Float32 results or, with _quantize, _quantize_rows and _round_bf16, what that makes of them.
// With _heads, over every head of a token.

#include <cmath>

#include "c_interface.h"
#include "residual.h"
#include "rows.h"

namespace engine {
namespace {

// normalized [* weight] [+ bias] [+ residual], each rounded on its own.
struct Affine {
  const float* weight = nullptr;
  const float* bias = nullptr;
  const float* residual = nullptr;

  ENGINE_INLINE void apply(GroupValues& values, int64_t k, int64_t features) const {
    if (weight != nullptr) {
      const GroupValues weights = load_group(weight, k, features);
      each_vector(values, [&](Vf value, int v) { return weights.part[v] * value; });
    }
    for (const float* added : {bias, residual})
      if (added != nullptr) {
        const GroupValues terms = load_group(added, k, features);
        each_vector(values, [&](Vf value, int v) { return value + terms.part[v]; });
      }
  }
};

// A row over its root mean square or, Centered, the row without its mean over its standard deviation.
template <bool Centered, class Source>
class Normalized {
 public:
  Normalized(const Source& x, int64_t row, double eps, const Affine& affine) : x_(x), row_(row), affine_(affine) {
    if constexpr (Centered) mean_ = sum([](Vf value) { return value; }) / float(x.features);
    inverse_ = 1.0f / std::sqrt(sum([&](Vf value) { return centered(value) * centered(value); }) / float(x.features) + float(eps));
  }

  ENGINE_INLINE GroupValues operator()(int64_t k) const {
    GroupValues values = x_.group(row_, k);
    each_vector(values, [&](Vf value, int) { return centered(value) * inverse_; });
    affine_.apply(values, k, x_.features);
    return values;
  }

 private:
  ENGINE_INLINE Vf centered(Vf value) const {
    if constexpr (Centered) return value - mean_;
    return value;
  }

  // Of what `term` makes of the row. Summed in 32 lanes, k to lane k % 32, which are then added as a
  // halving tree: one order on every ISA.
  template <class Term>
  float sum(const Term& term) const {
    GroupValues sums{};
    for (int64_t k = 0; k < x_.features; k += kGroup) {
      GroupValues values = x_.group(row_, k);
      each_vector(values, [&](Vf value, int) { return term(value); });
      if (k + kGroup > x_.features) values = first_of(values, x_.features - k);
      each_vector(sums, [&](Vf sum, int v) { return sum + values.part[v]; });
    }
    for (int width = kGroupVectors / 2; width > 0; width /= 2)
      for (int v = 0; v < width; ++v) sums.part[v] += sums.part[v + width];
    return reduce_add(sums.part[0]);
  }

  const Source& x_;
  const int64_t row_;
  const Affine affine_;
  float mean_ = 0, inverse_;
};

template <bool Centered, class Sink>
Tensor norm(const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
            double eps) {
  const Rows rows(x, "x");
  const Residual added(residual, rows.count, rows.features);
  const float* w = vector_of(weight, rows.features, "weight");
  const float* b = vector_of(bias, rows.features, "bias");
  return map_rows<Sink>(rows, [&](int64_t row) {
    return Normalized<Centered, Rows>(rows, row, eps, {w, b, added ? added.row(row) : nullptr});
  });
}

// weight * (x / sqrt(mean(x^2) + eps)) + residual, arXiv 1910.07467
template <class Sink>
Tensor rms_norm(Tensor x, std::optional<Tensor> weight, std::optional<Tensor> residual, double eps) {
  return norm<false, Sink>(x, weight, std::nullopt, residual, eps);
}

// weight * ((x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps)) + bias + residual, arXiv 1607.06450
template <class Sink>
Tensor layer_norm(Tensor x, std::optional<Tensor> weight, std::optional<Tensor> bias, std::optional<Tensor> residual, double eps) {
  return norm<true, Sink>(x, weight, bias, residual, eps);
}

// A vector for all heads, [D], or one for each, [H, D].
struct HeadVectors {
  const float* data = nullptr;
  int64_t stride = 0;

  HeadVectors(const std::optional<Tensor>& tensor, const HeadsAsRows& x, const char* name) {
    if (!tensor.has_value()) return;
    const bool shared = tensor->dim() == 1;
    check_contiguous(*tensor, ScalarType::Float, shared ? 1 : 2, name);
    STD_TORCH_CHECK(tensor->size(shared ? 0 : 1) == x.features && (shared || tensor->size(0) == x.heads), name, " is not that of ", x.heads,
                    " heads of ", x.features);
    data = static_cast<const float*>(tensor->data_ptr());
    stride = shared ? 0 : x.features;
  }
  const float* of(int64_t head) const { return data == nullptr ? nullptr : data + head * stride; }
};

template <bool Centered>
Tensor norm_heads(const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps) {
  const HeadsAsRows rows(x);
  const HeadVectors weights(weight, rows, "weight"), biases(bias, rows, "bias");
  Tensor out = empty_floats({x.size(0), rows.heads, rows.features});
  const FloatRows sink(out, rows.features);
  parallel_for(rows.count, 16, threads_for(rows.count * rows.features * kElementCost), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t head = row % rows.heads;
      sink.write(row, 0, rows.features, Normalized<Centered, HeadsAsRows>(rows, row, eps, {weights.of(head), biases.of(head)}));
    }
  });
  return out;
}

Tensor rms_norm_heads(Tensor x, std::optional<Tensor> weight, double eps) { return norm_heads<false>(x, weight, std::nullopt, eps); }
Tensor layer_norm_heads(Tensor x, std::optional<Tensor> weight, std::optional<Tensor> bias, double eps) {
  return norm_heads<true>(x, weight, bias, eps);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm<FloatRows>));
  m.impl("rms_norm_quantize", TORCH_BOX(&rms_norm<QuantizedRows>));
  m.impl("rms_norm_quantize_rows", TORCH_BOX(&rms_norm<QuantizedWholeRows>));
  m.impl("rms_norm_round_bf16", TORCH_BOX(&rms_norm<BFloat16Rows>));
  m.impl("layer_norm", TORCH_BOX(&layer_norm<FloatRows>));
  m.impl("layer_norm_quantize", TORCH_BOX(&layer_norm<QuantizedRows>));
  m.impl("layer_norm_quantize_rows", TORCH_BOX(&layer_norm<QuantizedWholeRows>));
  m.impl("layer_norm_round_bf16", TORCH_BOX(&layer_norm<BFloat16Rows>));
  m.impl("rms_norm_heads", TORCH_BOX(&rms_norm_heads));
  m.impl("layer_norm_heads", TORCH_BOX(&layer_norm_heads));
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
ENGINE_C_NORMS(_quantize_rows, engine::QuantizedWholeRows)
ENGINE_C_NORMS(_round_bf16, engine::BFloat16Rows)

ENGINE_EXPORT aoti_torch_cpu_rms_norm_heads(AtenTensorHandle x, AtenTensorHandle* weight, double eps, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::rms_norm_heads(engine::borrow(x), engine::borrow_optional(weight), eps); });
}
ENGINE_EXPORT aoti_torch_cpu_layer_norm_heads(AtenTensorHandle x, AtenTensorHandle* weight, AtenTensorHandle* bias, double eps,
                                              AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] {
    return engine::layer_norm_heads(engine::borrow(x), engine::borrow_optional(weight), engine::borrow_optional(bias), eps);
  });
}

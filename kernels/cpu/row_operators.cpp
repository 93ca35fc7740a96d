// What lies between two linears, one pass over each row: RMSNorm and SiLU-mul, with float32
// results or, with _quantize, quantized at once for the linear that follows.

#include <cmath>

#include "activations.h"
#include "c_interface.h"
#include "exp.h"

namespace engine {
namespace {

// Where a row's values go, 32 at a time.
struct FloatRows {
  float* to;
  int64_t features;

  static Tensor empty(int64_t rows, int64_t features) { return empty_floats({rows, features}); }
  FloatRows(const Tensor& out, int64_t features) : to(static_cast<float*>(out.data_ptr())), features(features) {}
  template <class Values>
  void write(int64_t row, const Values& values) const {
    float* at = to + row * features;
    for (int64_t k = 0; k < features; k += kGroup) {
      const GroupValues group = values(k);
      std::memcpy(at + k, group.part, size_t(std::min(kGroup, features - k)) * sizeof(float));
    }
  }
};

struct QuantizedRows {
  ActivationGroup* to;
  int64_t features;

  static Tensor empty(int64_t rows, int64_t features) { return empty_activations(rows, features); }
  QuantizedRows(const Tensor& out, int64_t features) : to(static_cast<ActivationGroup*>(out.data_ptr())), features(features) {}
  template <class Values>
  void write(int64_t row, const Values& values) const {
    quantize_row(features, values, to + row * groups_of(features));
  }
};

struct Rows {
  const float* data;
  int64_t stride, count, features;

  explicit Rows(const Tensor& x, const char* name) {
    check_rows(x, ScalarType::Float, 2, name);
    data = static_cast<const float*>(x.data_ptr());
    stride = row_stride(x), count = x.size(0), features = x.size(1);
  }
  GroupValues group(int64_t row, int64_t k) const { return load_group(data + row * stride, k, features); }
};

constexpr int64_t kElementCost = 8;  // of one element here, in multiply-adds: what threads_for counts in

// Calls values_of(row) for the `values(k)` of each row, and writes those to `out`.
template <class Sink, class ValuesOf>
Tensor map_rows(const Rows& x, const ValuesOf& values_of) {
  Tensor out = Sink::empty(x.count, x.features);
  const Sink sink(out, x.features);
  parallel_for(x.count, 4, threads_for(x.count * x.features * kElementCost), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) sink.write(row, values_of(row));
  });
  return out;
}

Tensor quantize(Tensor x) {
  const Rows rows(x, "x");
  return map_rows<QuantizedRows>(rows, [&](int64_t row) { return [&rows, row](int64_t k) { return rows.group(row, k); }; });
}

// Summed in 32 lanes, k to lane k % 32, which are then added as a halving tree: one order on every ISA.
float sum_of_squares(const Rows& x, int64_t row) {
  GroupValues sum{};
  for (int64_t k = 0; k < x.features; k += kGroup) {
    const GroupValues values = x.group(row, k);
#pragma GCC unroll 8
    for (int v = 0; v < kGroupVectors; ++v) sum.part[v] += values.part[v] * values.part[v];
  }
  for (int width = kGroupVectors / 2; width > 0; width /= 2)
    for (int v = 0; v < width; ++v) sum.part[v] += sum.part[v + width];
  return reduce_add(sum.part[0]);
}

// weight * (x / sqrt(mean(x^2) + eps)), arXiv 1910.07467
template <class Sink>
Tensor rms_norm(Tensor x, Tensor weight, double eps) {
  const Rows rows(x, "x");
  check_contiguous(weight, ScalarType::Float, 1, "weight");
  STD_TORCH_CHECK(weight.size(0) == rows.features, "weight has ", weight.size(0), " elements for ", rows.features, " features");
  const float* w = data<float>(weight);
  return map_rows<Sink>(rows, [&](int64_t row) {
    const float inverse = 1.0f / std::sqrt(sum_of_squares(rows, row) / float(rows.features) + float(eps));
    return [&rows, row, inverse, w](int64_t k) {
      GroupValues values = rows.group(row, k);
      const GroupValues weights = load_group(w, k, rows.features);
#pragma GCC unroll 8
      for (int v = 0; v < kGroupVectors; ++v) values.part[v] = weights.part[v] * (values.part[v] * inverse);
      return values;
    };
  });
}

// x * sigmoid(x), arXiv 1606.08415
ENGINE_INLINE Vf silu(Vf x) { return x / (1.0f + exp_clamped(-x)); }

template <class Sink>
Tensor silu_mul(Tensor gate, Tensor up) {
  const Rows gates(gate, "gate"), ups(up, "up");
  STD_TORCH_CHECK(gates.count == ups.count && gates.features == ups.features, "gate and up differ in shape");
  return map_rows<Sink>(gates, [&](int64_t row) {
    return [&gates, &ups, row](int64_t k) {
      GroupValues values = gates.group(row, k);
      const GroupValues factors = ups.group(row, k);
#pragma GCC unroll 8
      for (int v = 0; v < kGroupVectors; ++v) values.part[v] = silu(values.part[v]) * factors.part[v];
      return values;
    };
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) {
  m.impl("quantize", TORCH_BOX(&quantize));
  m.impl("rms_norm", TORCH_BOX(&rms_norm<FloatRows>));
  m.impl("rms_norm_quantize", TORCH_BOX(&rms_norm<QuantizedRows>));
  m.impl("silu_mul", TORCH_BOX(&silu_mul<FloatRows>));
  m.impl("silu_mul_quantize", TORCH_BOX(&silu_mul<QuantizedRows>));
}

}  // namespace engine

ENGINE_EXPORT aoti_torch_cpu_quantize(AtenTensorHandle x, AtenTensorHandle* result) {
  return engine::return_to_c(result, [&] { return engine::quantize(engine::borrow(x)); });
}

#define ENGINE_C_ROW_OPERATORS(suffix, sink)                                                                                      \
  ENGINE_EXPORT aoti_torch_cpu_rms_norm##suffix(AtenTensorHandle x, AtenTensorHandle weight, double eps, AtenTensorHandle* result) { \
    return engine::return_to_c(result, [&] { return engine::rms_norm<sink>(engine::borrow(x), engine::borrow(weight), eps); });   \
  }                                                                                                                               \
  ENGINE_EXPORT aoti_torch_cpu_silu_mul##suffix(AtenTensorHandle gate, AtenTensorHandle up, AtenTensorHandle* result) {           \
    return engine::return_to_c(result, [&] { return engine::silu_mul<sink>(engine::borrow(gate), engine::borrow(up)); });         \
  }
ENGINE_C_ROW_OPERATORS(, engine::FloatRows)
ENGINE_C_ROW_OPERATORS(_quantize, engine::QuantizedRows)

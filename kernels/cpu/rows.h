// What the row operators are written with: rows of float32 are read 32 values at a time, and
// written as float32, or at once quantized or rounded to bfloat16 for the linear that follows.
#pragma once

#include "activations.h"

namespace engine {

// Rows [T, K], which may lie apart.
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

// The heads of every token, [T, H, D], as rows of their own: row t * H + h. Tokens may lie apart.
struct HeadsAsRows {
  const float* data;
  int64_t stride, heads, count, features;

  explicit HeadsAsRows(const Tensor& x) {
    check_rows(x, ScalarType::Float, 3, "x");
    data = static_cast<const float*>(x.data_ptr());
    stride = row_stride(x), heads = x.size(1), count = x.size(0) * heads, features = x.size(2);
  }
  GroupValues group(int64_t row, int64_t k) const { return load_group(data + row / heads * stride + row % heads * features, k, features); }
};

// Applies `operation` to each vector of a group.
template <class Operation>
ENGINE_INLINE void each_vector(GroupValues& values, const Operation& operation) {
#pragma GCC unroll 8
  for (int v = 0; v < kGroupVectors; ++v) values.part[v] = operation(values.part[v], v);
}

// Where a row's values go. kWhole: whether each depends on all of its row.
struct FloatRows {
  static constexpr bool kWhole = false;
  float* to;
  int64_t features;

  static Tensor empty(int64_t rows, int64_t features) { return empty_floats({rows, features}); }
  FloatRows(const Tensor& out, int64_t features) : to(static_cast<float*>(out.data_ptr())), features(features) {}
  // The elements [begin, end) of a row; begin is a multiple of the group.
  template <class Values>
  void write(int64_t row, int64_t begin, int64_t end, const Values& values) const {
    float* at = to + row * features;
    for (int64_t k = begin; k < end; k += kGroup) {
      const GroupValues group = values(k);
      std::memcpy(at + k, group.part, size_t(std::min(kGroup, features - k)) * sizeof(float));
    }
  }
};

struct QuantizedRows {
  static constexpr bool kWhole = false;
  ActivationGroup* to;
  int64_t features;

  static Tensor empty(int64_t rows, int64_t features) { return empty_activations(rows, features); }
  QuantizedRows(const Tensor& out, int64_t features) : to(static_cast<ActivationGroup*>(out.data_ptr())), features(features) {}
  template <class Values>
  void write(int64_t row, int64_t begin, int64_t end, const Values& values) const {
    quantize_row(begin, end, values, to + row * groups_of(features));
  }
};

// With one scale for all of a row.
struct QuantizedWholeRows {
  static constexpr bool kWhole = true;
  int8_t* to;
  int64_t features;

  static Tensor empty(int64_t rows, int64_t features) { return empty_row_activations(rows, features); }
  QuantizedWholeRows(const Tensor& out, int64_t features) : to(static_cast<int8_t*>(out.data_ptr())), features(features) {}
  template <class Values>
  void write(int64_t row, int64_t, int64_t, const Values& values) const {
    quantize_whole_row(features, values, to + row * row_bytes(features));
  }
};

// Of an odd number of features, a zero follows the last.
struct BFloat16Rows {
  static constexpr bool kWhole = false;
  BFloat16* to;
  int64_t features;

  static Tensor empty(int64_t rows, int64_t features) { return empty_tensor({rows, features + features % 2}, aoti_torch_dtype_bfloat16(), 2); }
  BFloat16Rows(const Tensor& out, int64_t features) : to(static_cast<BFloat16*>(out.data_ptr())), features(features) {}
  template <class Values>
  void write(int64_t row, int64_t begin, int64_t end, const Values& values) const {
    BFloat16* at = to + row * (features + features % 2);
    for (int64_t k = begin; k < end; k += kGroup) {
      const GroupValues group = values(k);
      BFloat16 rounded[kGroup];
#pragma GCC unroll 8
      for (int v = 0; v < kGroupVectors; ++v) store_rounded(rounded + v * kLanes, group.part[v]);
      std::memcpy(at + k, rounded, size_t(std::min(kGroup, features - k)) * sizeof(BFloat16));
    }
    if (end == features && features % 2 != 0) at[features] = {0};
  }
};

constexpr int64_t kElementCost = 8;  // of one element, in multiply-adds: what threads_for counts in

// Calls values_of(row) for the `values(k)` of each row, and writes those. A row is one thread's up to `piece`
// elements, a multiple of the group.
template <class Sink, class ValuesOf>
Tensor map_pieces(const Rows& x, int64_t piece, const ValuesOf& values_of) {
  Tensor out = Sink::empty(x.count, x.features);
  const Sink sink(out, x.features);
  const int64_t pieces = (x.features + piece - 1) / piece;
  parallel_for(x.count * pieces, pieces > 1 ? 1 : 4, threads_for(x.count * x.features * kElementCost), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = i % pieces * piece;
      sink.write(i / pieces, from, std::min(from + piece, x.features), values_of(i / pieces));
    }
  });
  return out;
}

// For values that depend on others of their row.
template <class Sink, class ValuesOf>
Tensor map_rows(const Rows& x, const ValuesOf& values_of) {
  return map_pieces<Sink>(x, std::max<int64_t>(groups_of(x.features), 1) * kGroup, values_of);
}

// For values that depend on no others: one row of logits is work for many threads.
template <class Sink, class ValuesOf>
Tensor map_elements(const Rows& x, const ValuesOf& values_of) {
  if constexpr (Sink::kWhole) return map_rows<Sink>(x, values_of);
  else return map_pieces<Sink>(x, int64_t{1} << 14, values_of);
}

}  // namespace engine

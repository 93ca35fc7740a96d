// Activations as the quantized linears read them: int8, one scale per row and group of 32, or one per row.
//
// Of groups a tensor [T, G, 48] of bytes. Each group is 32 quants, then float32 scale, float32 scale * sum,
// int32 sum of the quants, and int16 sums of the first and of the last 16. All of a group lies
// together, so that a kernel reaches everything of a row through one pointer.
//
// scale = amax / 127 and quant = x * (127 / amax) rounded to even. A group that is all but zero
// is zero. A group with an infinity or a NaN makes its whole row NaN and no other row.
//
// Of rows a tensor [T, bytes]: quants, filled up with zeros to whole lines of 64, and a line that begins with the numbers of
// the row. scale = amax / 127.5 and quant = x / scale, -128 to 127, rounded to even, as compressed-tensors has it.
#pragma once

#include "op.h"
#include "simd.h"

namespace engine {

constexpr int64_t kActivationBytes = 48;
constexpr float kSmallestAmax = 0x1p-100f;

struct ActivationGroup {
  int8_t quants[kGroup];
  float scale;
  float scaled_sum;
  int32_t sum;
  int16_t half_sums[2];
};
static_assert(sizeof(ActivationGroup) == kActivationBytes);

// That x is [rows, groups, 48], what quantize gives.
inline void check_activations(const Tensor& x) {
  check_contiguous(x, ScalarType::Byte, 3, "x");
  STD_TORCH_CHECK(x.size(2) == kActivationBytes, "x must be what quantize gives");
}

inline int64_t groups_of(int64_t features) { return (features + kGroup - 1) / kGroup; }

// The group's values in registers, in order.
constexpr int kGroupVectors = int(kGroup) / kLanes;
struct GroupValues {
  Vf part[kGroupVectors];
};

ENGINE_INLINE void quantize_group(const GroupValues& x, ActivationGroup& to) {
  Vi largest{};
#pragma GCC unroll 8
  for (int v = 0; v < kGroupVectors; ++v) largest = max(largest, bit_cast<Vi>(x.part[v]) & 0x7fffffff);
  const int32_t amax_bits = reduce_max(largest);
  const float amax = bit_cast<float>(amax_bits);
  const bool finite = amax_bits < 0x7f800000, usable = finite && amax >= kSmallestAmax;
  const float inverse = usable ? 127.0f / amax : 0.0f;
  Vi halves[2] = {};
#pragma GCC unroll 8
  for (int v = 0; v < kGroupVectors; ++v) {
    const Vi quant = usable ? round_to_int(x.part[v] * inverse) : Vi{};
    store_lanes(to.quants + v * kLanes, quant);
    halves[v / (kGroupVectors / 2)] += quant;
  }
  to.scale = usable ? amax / 127.0f : finite ? 0.0f : NAN;
  for (int half = 0; half < 2; ++half) to.half_sums[half] = int16_t(reduce_add(halves[half]));
  to.sum = to.half_sums[0] + to.half_sums[1];
  to.scaled_sum = to.scale * float(to.sum);
}

// The first `count` of the values, then zeros.
ENGINE_INLINE GroupValues first_of(const GroupValues& values, int64_t count) {
  alignas(64) float padded[kGroup];
  std::memcpy(padded, values.part, sizeof(padded));
  std::fill(padded + count, padded + kGroup, 0.0f);
  GroupValues cut;
  std::memcpy(cut.part, padded, sizeof(padded));
  return cut;
}

// The elements [begin, end) of a row whose groups begin at `to`; begin is a multiple of the group.
// `values(k)` gives the elements k .. k + 31, of which those past the end are set to zero here.
template <class Values>
ENGINE_INLINE void quantize_row(int64_t begin, int64_t end, const Values& values, ActivationGroup* to) {
  int64_t k = begin;
  to += begin / kGroup;
  for (; k + kGroup <= end; k += kGroup) quantize_group(values(k), *to++);
  if (k < end) quantize_group(first_of(values(k), end - k), *to);
}

constexpr int64_t kLine = 64;

struct RowNumbers {
  float scale;
  int32_t sum;  // of the quants
  uint8_t zeros[kLine - 8];
};
static_assert(sizeof(RowNumbers) == kLine);

inline int64_t row_quants(int64_t features) { return (features + kLine - 1) / kLine * kLine; }
inline int64_t row_bytes(int64_t features) { return row_quants(features) + int64_t(sizeof(RowNumbers)); }

// The first pass over a row: its values, then zeros, as far as quants go. Returns the bits of the largest magnitude.
template <class Values>
ENGINE_INLINE int32_t gather_row(int64_t features, const Values& values, float* to) {
  Vi largest{};
  for (int64_t k = 0; k < features; k += kGroup) {
    const GroupValues group = k + kGroup <= features ? values(k) : first_of(values(k), features - k);
#pragma GCC unroll 8
    for (int v = 0; v < kGroupVectors; ++v) {
      store(to + k + v * kLanes, group.part[v]);
      largest = max(largest, bit_cast<Vi>(group.part[v]) & 0x7fffffff);
    }
  }
  std::fill(to + groups_of(features) * kGroup, to + row_quants(features), 0.0f);
  return reduce_max(largest);
}

// A whole row, whose `values(k)` are as those of quantize_row.
template <class Values>
void quantize_whole_row(int64_t features, const Values& values, int8_t* to) {
  static thread_local Scratch scratch;
  const int64_t count = row_quants(features);
  float* row = scratch.take<float>(count);
  const int32_t amax_bits = gather_row(features, values, row);
  const bool finite = amax_bits < 0x7f800000;
  float scale = bit_cast<float>(amax_bits) / 127.5f;
  if (scale == 0) scale = 0x1p-23f;
  Vi sum{};
  for (int64_t k = 0; k < count; k += kLanes) {
    const Vi quants = finite ? round_to_int(clamp(load(row + k) / scale, -128, 127)) : Vi{};
    store_lanes(to + k, quants);
    sum += quants;
  }
  const RowNumbers numbers{finite ? scale : NAN, reduce_add(sum), {}};
  std::memcpy(to + count, &numbers, sizeof(numbers));
}

inline Tensor empty_row_activations(int64_t rows, int64_t features) {
  return empty_tensor({rows, row_bytes(features)}, aoti_torch_dtype_uint8(), 1);
}

inline Tensor empty_activations(int64_t rows, int64_t features) {
  return empty_tensor({rows, groups_of(features), kActivationBytes}, aoti_torch_dtype_uint8(), 1);
}

// 32 values of a row of `features` from element k on; what lies past the row's end is not read.
ENGINE_INLINE GroupValues load_group(const float* row, int64_t k, int64_t features) {
  GroupValues values;
  if (k + kGroup <= features) {
#pragma GCC unroll 8
    for (int v = 0; v < kGroupVectors; ++v) values.part[v] = load(row + k + v * kLanes);
  } else {
    alignas(64) float padded[kGroup] = {};
    std::copy_n(row + k, features - k, padded);
    std::memcpy(values.part, padded, sizeof(padded));
  }
  return values;
}

}  // namespace engine

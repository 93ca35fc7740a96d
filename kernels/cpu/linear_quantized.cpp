// linear_* and embedding_* for q8_0, q4_0 and q4_1: weights in the layout of linear/formats.py,
// activations quantized on the fly.
//
// Every output is, with g running over the groups of 32 in order and every operation rounded
// to float32 on its own (this is also what linear/reference.py computes, bit for bit):
//   q8_0, q4_0   sum += float(dot(q_w, q_x)) * (scale_w * scale_x)
//   q4_1         the same, then sum += min_w * (scale_x * float(sum(q_x)))

#include <algorithm>

#include "dot.h"
#include "c_interface.h"
#include "op.h"

namespace engine {
namespace {

constexpr int kQuads = kGroup / 4;
constexpr int kQuadBytes = 4 * kPanel;  // four consecutive k of the 16 outputs of a panel
constexpr float kSmallestAmax = 0x1p-100f;

// One group of one panel, as bytes: quants first, 16 float16 scales, then 16 mins if any.
struct Q8_0 {
  static constexpr int kQuantBytes = kQuads * kQuadBytes;
  static constexpr int kBytes = kQuantBytes + 2 * kPanel;
  static constexpr bool kHasMin = false;
  static int quant(const uint8_t* block, int k, int n) { return int8_t(block[k / 4 * kQuadBytes + n * 4 + k % 4]); }
};

template <bool HasMin, int Zero>
struct Nibbles {
  static constexpr int kQuantBytes = kQuads / 2 * kQuadBytes;  // the low nibbles hold k 0..15, the high ones k 16..31
  static constexpr int kBytes = kQuantBytes + (HasMin ? 4 : 2) * kPanel;
  static constexpr bool kHasMin = HasMin;
  static constexpr int kZero = Zero;
  static int quant(const uint8_t* block, int k, int n) {
    return (block[k % 16 / 4 * kQuadBytes + n * 4 + k % 4] >> (k < 16 ? 0 : 4) & 0x0f) - Zero;
  }
};
using Q4_0 = Nibbles<false, 8>;
using Q4_1 = Nibbles<true, 0>;

template <class Format>
const Half* scales(const uint8_t* block) {
  return reinterpret_cast<const Half*>(block + Format::kQuantBytes);
}
template <class Format>
const Half* mins(const uint8_t* block) {
  return scales<Format>(block) + kPanel;
}

struct Activations {
  int8_t* quants;   // [rows, groups, 32]
  float* scales;    // [rows, groups]
  int32_t* sums;    // [rows, groups], of the quants
  float* mins;      // [rows, groups], what a weight min of 1 contributes: scale * sum
};

// scale = amax / 127 and q = x * (127 / amax) rounded to even. A group that is all but zero is
// zero. A group with an infinity or a NaN makes its whole row NaN and no other row.
void quantize_group(const float* x, int64_t count, int64_t at, const Activations& to) {
  alignas(64) float padded[kGroup] = {};
  if (count < kGroup) {
    std::copy_n(x, count, padded);
    x = padded;
  }
  constexpr int kVectors = kGroup / kLanes;
  Vi largest{};
  for (int v = 0; v < kVectors; ++v) largest = max(largest, bit_cast<Vi>(load(x + v * kLanes)) & 0x7fffffff);
  const int32_t amax_bits = reduce_max(largest);
  const float amax = bit_cast<float>(amax_bits);
  const bool finite = amax_bits < 0x7f800000, usable = finite && amax >= kSmallestAmax;
  int8_t* quants = to.quants + at * kGroup;
  Vi sum{};
  if (usable) {
    const float inverse = 127.0f / amax;
    for (int v = 0; v < kVectors; ++v) {
      typedef int8_t Bytes __attribute__((vector_size(kLanes), may_alias));
      const Vi quant = round_to_int(load(x + v * kLanes) * inverse);
      store(quants + v * kLanes, __builtin_convertvector(quant, Bytes));
      sum += quant;
    }
  } else {
    std::fill_n(quants, kGroup, int8_t{0});
  }
  to.scales[at] = usable ? amax / 127.0f : finite ? 0.0f : NAN;
  to.sums[at] = reduce_add(sum);
  to.mins[at] = to.scales[at] * float(to.sums[at]);
}

template <class Format>
struct QuantizedLinear {
  const float* x;
  int64_t x_stride;
  const uint8_t* w;
  const float* bias;
  float* out;
  int64_t rows, in_features, out_features, panels, groups;
  Activations activations;

  template <int Rows>
  static ENGINE_INLINE void dot(const uint8_t* block, const int8_t* quants, int64_t stride, const int32_t* sums, int64_t groups, int half,
                                Vi* dots) {
    block += half * 4 * kLanes;
    if constexpr (Format::kQuantBytes == kQuads * kQuadBytes) {
      ByteDot sum[Rows];
#pragma GCC unroll 8
      for (int quad = 0; quad < kQuads; ++quad) {
        const auto weight = ByteDot::prepare(load_vector<Vb>(block + quad * kQuadBytes));
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) sum[r].add(weight, splat_quad(quants + r * stride + quad * 4));
      }
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) dots[r] = sum[r].total(sums[r * groups]);
    } else {
      NibbleDot sum[Rows];
#pragma GCC unroll 8
      for (int quad = 0; quad < kQuads / 2; ++quad) {
        const Vb packed = load_vector<Vb>(block + quad * kQuadBytes);
        const Vb low = low_nibbles(packed), high = high_nibbles(packed);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          sum[r].add(low, splat_quad(quants + r * stride + quad * 4));
          sum[r].add(high, splat_quad(quants + r * stride + kGroup / 2 + quad * 4));
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) dots[r] = sum[r].total() - Format::kZero * sums[r * groups];
    }
  }

  // A single row takes a panel's halves together and so reads the weights once, in order. More
  // rows take one half at a time, whose sums then stay in registers.
  template <int Rows>
  __attribute__((noinline)) void row_block(int64_t row, int64_t panel) const {
    constexpr int kTogether = Rows == 1 ? kHalves : 1;
    alignas(64) float values[Rows * kPanel];
    for (int half = 0; half < kHalves; half += kTogether) half_block<Rows, kTogether>(row, panel, half, values + half * kLanes);
    finish<Rows>(row, panel * kPanel, values);
  }

  template <int Rows, int Halves>
  ENGINE_INLINE void half_block(int64_t row, int64_t panel, int first_half, float* values) const {
    const int64_t stride = groups * kGroup;
    const int8_t* quants = activations.quants + row * stride;
    const float* x_scales = activations.scales + row * groups;
    const float* x_mins = activations.mins + row * groups;
    const int32_t* sums = activations.sums + row * groups;
    const uint8_t* block = w + panel * groups * Format::kBytes;
    Vf sum[Halves][Rows] = {};
    for (int64_t g = 0; g < groups; ++g, block += Format::kBytes, quants += kGroup, ++sums) {
#pragma GCC unroll 4
      for (int h = 0; h < Halves; ++h) {
        const int half = first_half + h;
        Vi dots[Rows];
        dot<Rows>(block, quants, stride, sums, groups, half, dots);
        const Vf w_scale = load(scales<Format>(block) + half * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) sum[h][r] += to_float(dots[r]) * (w_scale * x_scales[r * groups + g]);
        if constexpr (Format::kHasMin) {
          const Vf w_min = load(mins<Format>(block) + half * kLanes);
#pragma GCC unroll 8
          for (int r = 0; r < Rows; ++r) sum[h][r] += w_min * x_mins[r * groups + g];
        }
      }
    }
    for (int h = 0; h < Halves; ++h)
      for (int r = 0; r < Rows; ++r) store(values + r * kPanel + h * kLanes, sum[h][r]);
  }

  template <int Rows>
  void finish(int64_t row, int64_t column, const float* values) const {
    const int64_t columns = std::min<int64_t>(kPanel, out_features - column);
    for (int r = 0; r < Rows; ++r, values += kPanel) {
      float* to = out + (row + r) * out_features + column;
      if (bias != nullptr)
        for (int64_t n = 0; n < columns; ++n) to[n] = values[n] + bias[column + n];
      else if (columns == kPanel)
        std::memcpy(to, values, kPanel * sizeof(float));
      else
        std::copy_n(values, columns, to);
    }
  }

#if defined(ENGINE_AVX512)
  static constexpr int kRows = 8;
#else
  static constexpr int kRows = 4;
#endif

  void tile(int64_t row, int64_t last_row, int64_t panel) const {
    for (; row + kRows <= last_row; row += kRows) row_block<kRows>(row, panel);
    if constexpr (kRows > 4)
      if (row + 4 <= last_row) row_block<4>(row, panel), row += 4;
    if (row + 3 == last_row) row_block<3>(row, panel);
    if (row + 2 == last_row) row_block<2>(row, panel);
    if (row + 1 == last_row) row_block<1>(row, panel);
  }

  void run() const {
    // Rows whose quantized activations stay in the second cache level while panels stream by.
    const int64_t tile_rows = std::clamp<int64_t>((int64_t{192} << 10) / (groups * kGroup) / kRows * kRows, kRows, 256);
    const int threads = threads_for(rows * in_features * out_features);
    const int64_t run = std::clamp<int64_t>(panels / (8 * threads), 1, 8);  // panels per task: long streams, even shares
    const int64_t runs = (panels + run - 1) / run;
    const int64_t tasks = runs * ((rows + tile_rows - 1) / tile_rows);
    parallel_for(rows * groups, 64, threads_for(rows * in_features * 4), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t k = i % groups * kGroup;
        quantize_group(x + i / groups * x_stride + k, std::min(kGroup, in_features - k), i, activations);
      }
    });
    parallel_for(tasks, 1, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / runs * tile_rows, last_row = std::min(row + tile_rows, rows);
        const int64_t panel = i % runs * run, last_panel = std::min(panel + run, panels);
        for (int64_t p = panel; p < last_panel; ++p) tile(row, last_row, p);
      }
    });
  }
};

template <class Format>
void check_weight(const Tensor& w, int64_t in_features) {
  check_contiguous(w, ScalarType::Byte, 3, "w");
  STD_TORCH_CHECK(w.size(1) == (in_features + kGroup - 1) / kGroup && w.size(2) == Format::kBytes, "w is not packed for ", in_features,
                  " input features");
}

template <class Format>
Tensor linear(Tensor x, Tensor w, std::optional<Tensor> bias, int64_t out_features) {
  check_rows(x, ScalarType::Float, 2, "x");
  const int64_t rows = x.size(0), in_features = x.size(1);
  const int64_t panels = (out_features + kPanel - 1) / kPanel, groups = w.size(1);
  check_weight<Format>(w, in_features);
  STD_TORCH_CHECK(out_features > 0 && w.size(0) == panels, "w has ", w.size(0), " panels, not ", panels);
  const float* bias_data = bias_of(bias, out_features);
  Tensor out = empty_floats({rows, out_features});

  static thread_local Scratch quants, scales, sums, mins;
  const int64_t count = rows * groups;
  const Activations activations{quants.take<int8_t>(count * kGroup), scales.take<float>(count), sums.take<int32_t>(count), mins.take<float>(count)};
  QuantizedLinear<Format>{data<float>(x),  row_stride(x), data<uint8_t>(w), bias_data, static_cast<float*>(out.data_ptr()), rows, in_features,
                          out_features, panels,        groups,           activations}
      .run();
  return out;
}

template <class Format>
Tensor embedding(Tensor tokens, Tensor w, int64_t dim) {
  check_contiguous(tokens, ScalarType::Int, 1, "tokens");
  check_weight<Format>(w, dim);
  const int64_t count = tokens.size(0), groups = w.size(1);
  const int32_t* token = data<int32_t>(tokens);
  for (int64_t t = 0; t < count; ++t)
    STD_TORCH_CHECK(token[t] >= 0 && token[t] < w.size(0) * kPanel, "token ", token[t], " is outside the vocabulary");
  Tensor out = empty_floats({count, dim});
  float* to = static_cast<float*>(out.data_ptr());
  const uint8_t* from = data<uint8_t>(w);
  parallel_for(count, 1, threads_for(count * dim), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int n = token[t] % kPanel;
      for (int64_t k = 0; k < dim; ++k) {
        const uint8_t* block = from + (token[t] / kPanel * groups + k / kGroup) * Format::kBytes;
        float value = to_float(scales<Format>(block)[n]) * float(Format::quant(block, int(k % kGroup), n));
        if constexpr (Format::kHasMin) value += to_float(mins<Format>(block)[n]);
        to[t * dim + k] = value;
      }
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) {
  m.impl("linear_q8_0", TORCH_BOX(&linear<Q8_0>));
  m.impl("linear_q4_0", TORCH_BOX(&linear<Q4_0>));
  m.impl("linear_q4_1", TORCH_BOX(&linear<Q4_1>));
  m.impl("embedding_q8_0", TORCH_BOX(&embedding<Q8_0>));
  m.impl("embedding_q4_0", TORCH_BOX(&embedding<Q4_0>));
  m.impl("embedding_q4_1", TORCH_BOX(&embedding<Q4_1>));
}

}  // namespace engine

ENGINE_C_KERNEL(q8_0, linear<engine::Q8_0>, embedding<engine::Q8_0>)
ENGINE_C_KERNEL(q4_0, linear<engine::Q4_0>, embedding<engine::Q4_0>)
ENGINE_C_KERNEL(q4_1, linear<engine::Q4_1>, embedding<engine::Q4_1>)

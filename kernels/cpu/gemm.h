// The matrix product of the dense linears.
//
// C[r][n] += sum over k of A[r][k] * W[k][n], summed in the order of k, one fused multiply-add at a time; of
// bfloat16 in that of products.h. Lanes run over n, so the sum of one output never meets another's and is
// bitwise the same whatever the number of rows, columns or calls it is cut into.
//
// With `begins`, C has no sums yet. Last, a sum meets `met` others, which wait `level_stride` floats
// apart before C, the nearest last (see sum_tree.h).
#pragma once

#include "products.h"

namespace engine {

constexpr int kMostRows = 6;  // that share each load of a weight
#if defined(ENGINE_AVX512)
constexpr int kAccumulators = 24;
#else
constexpr int kAccumulators = 12;
#endif

// Panels taken at once with `rows` rows: as many as the accumulator registers hold.
constexpr int panels_at_once(int rows) {
  const int fit = kAccumulators / (rows * kHalves);
  return fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
}

// W is [k][16] per panel, or [k/2][16][2] where elements are multiplied in pairs, and A has the same type then.
template <class Weight>
struct Product {
  using Activation = std::conditional_t<kTogether<Weight> == 2, Weight, float>;

  const Activation* a;
  int64_t a_stride;
  const Weight* w;
  int64_t panel_stride;
  int64_t depth;  // whole pairs
  float* c;
  int64_t c_stride;
  bool begins = false;
  int met = 0;
  int64_t level_stride = 0;

  // Bytes: what measured best. Where fewer rows share a load, the processor's own prefetching is faster.
  static constexpr int64_t kAhead = 2 << 10;

  template <int Rows, int Panels>
  ENGINE_INLINE void block(int64_t row, int64_t panel) const {
    constexpr int kVectors = Panels * kHalves;
    const Activation* a_row = a + row * a_stride;
    const Weight* w_panel = w + panel * panel_stride;
    float* c_row = c + row * c_stride + panel * kPanel;
    Vf sum[Rows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sum[r][v] = begins ? Vf{} : load(c_row + r * c_stride + v * kLanes);
    for (int64_t k = 0; k < depth; k += kTogether<Weight>) {
      const Weight* w_at = w_panel + k * kPanel;
      if constexpr (Rows == kMostRows)
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) __builtin_prefetch(reinterpret_cast<const char*>(w_at + p * panel_stride) + kAhead, 0, 3);
      add_products<Rows, kVectors>(
          [&](int r) { return a_row + r * a_stride + k; },
          [&](int v) { return multiplicands(w_at + v / kHalves * panel_stride + v % kHalves * kLanes * kTogether<Weight>); }, sum);
    }
    for (int level = met; level > 0; --level)
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sum[r][v] = load(c_row - level * level_stride + r * c_stride + v * kLanes) + sum[r][v];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) store(c_row + r * c_stride + v * kLanes, sum[r][v]);
  }

  template <int Rows>
  __attribute__((noinline)) void row_block(int64_t row, int64_t panels) const {
    constexpr int kPanels = panels_at_once(Rows);
    int64_t panel = 0;
    for (; panel + kPanels <= panels; panel += kPanels) block<Rows, kPanels>(row, panel);
    if constexpr (kPanels > 1)
      for (; panel < panels; ++panel) block<Rows, 1>(row, panel);
  }

  // Blocks of few rows wait for their own sums, so the last rows are shared out evenly: 8 are 4 and 4, not 6 and 2.
  void run(int64_t rows, int64_t panels) const {
    for (int64_t row = 0; row < rows;) {
      const int64_t left = rows - row;
      const int64_t next = left <= kMostRows ? left : left >= 2 * kMostRows ? kMostRows : (left + 1) / 2;
      rows_at_once<kMostRows>(next, row, panels);
      row += next;
    }
  }

  template <int Most>
  ENGINE_INLINE void rows_at_once(int64_t count, int64_t row, int64_t panels) const {
    if constexpr (Most > 1)
      if (count < Most) return rows_at_once<Most - 1>(count, row, panels);
    row_block<Most>(row, panels);
  }
};

}  // namespace engine

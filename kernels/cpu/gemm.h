// The one float matrix product: dense linears and both halves of attention are made of it.
//
// C[r][n] += sum over k of A[r][k] * W[k][n], summed in the order of k, one fused
// multiply-add at a time. Lanes run over n, so the sum of one output never meets another's
// and is bitwise the same whatever the number of rows, columns or calls it is cut into.
//
// With `begins`, C has no sums yet. Last, a sum meets `met` others, which wait `level_stride` floats
// apart before C, the nearest last (see sum_tree.h).
#pragma once

#include "simd.h"

namespace engine {

#if defined(ENGINE_AVX512)
constexpr int kRowBlocks[] = {8, 4, 3, 2, 1};
constexpr int kAccumulators = 16;
#else
constexpr int kRowBlocks[] = {6, 4, 3, 2, 1};
constexpr int kAccumulators = 12;
#endif

// Panels taken at once with `rows` rows: as many as the accumulator registers hold.
constexpr int panels_at_once(int rows) {
  const int fit = kAccumulators / (rows * kHalves);
  return fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
}

// W is [k][16] per panel with `w_stride` between k and `panel_stride` between panels.
template <class Weight>
struct Product {
  const float* a;
  int64_t a_stride;
  const Weight* w;
  int64_t w_stride;
  int64_t panel_stride;
  int64_t depth;
  float* c;
  int64_t c_stride;
  bool begins = false;
  int met = 0;
  int64_t level_stride = 0;

  template <int Rows, int Panels>
  ENGINE_INLINE void block(int64_t row, int64_t panel) const {
    constexpr int kVectors = Panels * kHalves;
    const float* a_row = a + row * a_stride;
    const Weight* w_panel = w + panel * panel_stride;
    float* c_row = c + row * c_stride + panel * kPanel;
    Vf sum[Rows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sum[r][v] = begins ? Vf{} : load(c_row + r * c_stride + v * kLanes);
    for (int64_t k = 0; k < depth; ++k) {
      Vf weight[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v)
        weight[v] = load(w_panel + k * w_stride + v / kHalves * panel_stride + v % kHalves * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const Vf activation = splat(a_row[r * a_stride + k]);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(activation, weight[v], sum[r][v]);
      }
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

  void run(int64_t rows, int64_t panels) const {
    int64_t row = 0;
    for (; row + kRowBlocks[0] <= rows; row += kRowBlocks[0]) row_block<kRowBlocks[0]>(row, panels);
    while (row < rows) {
      const int64_t left = rows - row;
      if (left >= kRowBlocks[1]) row_block<kRowBlocks[1]>(row, panels), row += kRowBlocks[1];
      else if (left == 3) row_block<3>(row, panels), row += 3;
      else if (left == 2) row_block<2>(row, panels), row += 2;
      else row_block<1>(row, panels), row += 1;
    }
  }
};

}  // namespace engine

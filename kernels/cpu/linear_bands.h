// What linears of all quantized formats share: a linear is one band or several, each some columns of the
// result with weights in a format of its own, and all their tasks are one piece of common work.
#pragma once

#include <algorithm>
#include <span>

#include "activations.h"
#include "epilogue.h"

namespace engine {

struct Band;

// What differs between formats.
struct BandFormat {
  int64_t groups;        // of a block
  int64_t rows_at_once;  // of a block
  int64_t row_step;      // a task has a multiple of it, but for the last
  int64_t (*panel_bytes)(int64_t groups);
  int64_t (*row_bytes)(int64_t groups);  // of a row of activations, as they are multiplied
  void (*tile)(const Band& band, int64_t row, int64_t last_row, int64_t panel, int64_t last_panel);
};

#if defined(ENGINE_AVX512)
constexpr int kPanelsAtOnce = 2;
#else
constexpr int kPanelsAtOnce = 1;
#endif
#if defined(ENGINE_AMX)
constexpr int64_t kRowCache = 1 << 20;  // of the 2 MiB that every processor with AMX has per core
#else
constexpr int64_t kRowCache = 256 << 10;
#endif
constexpr int64_t kReadAhead = 256 << 10;  // bytes: what memory delivers between two calls

// The epilogue and `out` begin at the band's first column; rows of the result are `stride` apart. x: activations as the format reads them.
struct Band {
  const BandFormat* format;
  const void* x;
  const uint8_t* w;
  Epilogue epilogue;
  float* out;
  int64_t rows, out_features, groups, stride;

  int64_t panels() const { return (out_features + kPanel - 1) / kPanel; }
  int64_t bytes() const { return panels() * format->panel_bytes(groups); }
  // Rows whose activations stay in the second cache level while panels stream by.
  int64_t tile_rows() const {
    const int64_t step = format->row_step;
    return std::clamp<int64_t>(kRowCache / format->row_bytes(groups) / step * step, step, 64 * format->rows_at_once);
  }
  // A task is a tile of rows and `run` panels.
  int64_t runs(int64_t run) const { return (panels() + run - 1) / run; }
  int64_t tasks(int64_t run) const { return runs(run) * ((rows + tile_rows() - 1) / tile_rows()); }
  void compute(int64_t task, int64_t run) const {
    const int64_t row = task / runs(run) * tile_rows(), panel = task % runs(run) * run;
    format->tile(*this, row, std::min(row + tile_rows(), rows), panel, std::min(panel + run, panels()));
  }
};

// Of all bands. ahead: what is read after their weights, of which something may be brought nearer meanwhile; or null.
inline void compute_bands(std::span<const Band> bands, const uint8_t* ahead) {
  int64_t work = 0, panels = 0;
  for (const Band& band : bands) work += band.rows * band.groups * kGroup * band.out_features, panels += band.panels();
  const int threads = threads_for(work);
  const int64_t run = std::clamp<int64_t>(panels / (8 * threads) / kPanelsAtOnce, 1, 8 / kPanelsAtOnce) * kPanelsAtOnce;  // long streams, even shares
  int64_t tasks = 0;
  for (const Band& band : bands) tasks += band.tasks(run);
  Team::instance().read_ahead(ahead, ahead == nullptr ? 0 : kReadAhead);
  parallel_for(tasks, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Band* band = bands.data();
      int64_t task = i;
      for (; task >= band->tasks(run); ++band) task -= band->tasks(run);
      band->compute(task, run);
    }
  });
}

// Bands of the same rows, whose weights lie one after another, in the order of their use.
inline void compute_linear(std::span<const Band> bands) { compute_bands(bands, bands.back().w + bands.back().bytes()); }

// Calls block<R>(row) for R rows from `row` on, at most `Most` of them, until all have had their turn. Blocks of few rows wait for
// their own sums, so the last rows are shared out evenly: 8 are 4 and 4, not 6 and 2.
template <int Most, class Block>
void in_blocks(int64_t row, int64_t last_row, const Block& block) {
  const auto call = [&]<int Rows>(const auto& self, int64_t count) __attribute__((always_inline)) {
    if constexpr (Rows > 1)
      if (count < Rows) return self.template operator()<Rows - 1>(self, count);
    block.template operator()<Rows>(row);
  };
  while (row < last_row) {
    const int64_t left = last_row - row;
    const int64_t next = left <= Most ? left : left >= 2 * Most ? Most : (left + 1) / 2;
    call.template operator()<Most>(call, next);
    row += next;
  }
}

}  // namespace engine

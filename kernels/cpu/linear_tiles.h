// Blocks of the quantized linears on AMX: up to 32 rows with up to 2 panels, four tiles of sums.
//
// The integers are those of dot.h and the float operations are those of linear_quantized.cpp in
// their order, so a row has the same bits whichever of the two computes it.
#pragma once

#include <algorithm>
#include <cstring>

#include "activations.h"
#include "amx.h"

#if defined(ENGINE_AMX)

namespace engine {

constexpr int kBlockRows = 2 * kTileRows, kBlockPanels = 2;

// Tiles for blocks of up to kBlockRows rows, as long as this lives.
class BlockTiles {
 public:
  static constexpr int sum(int row_tile, int panel) { return row_tile * kBlockPanels + panel; }
  static constexpr int x(int row_tile) { return 4 + row_tile; }
  static constexpr int w(int panel) { return 6 + panel; }

  BlockTiles() = default;
  BlockTiles(const BlockTiles&) = delete;
  ~BlockTiles() { release_tiles(); }

  // A tile past the last row gets no rows, and must not be used.
  void fit(int rows) {
    if (rows == rows_) return;
    rows_ = rows;
    TileShapes shapes;
    for (int panel = 0; panel < kBlockPanels; ++panel) shapes.set(w(panel), int(kGroup) / 4, kTileRowBytes);
    for (int tile = 0, first = 0; first < rows; ++tile, first += kTileRows) {
      const int tile_rows = std::min(rows - first, kTileRows);
      shapes.set(x(tile), tile_rows, int(kGroup));
      for (int panel = 0; panel < kBlockPanels; ++panel) shapes.set(sum(tile, panel), tile_rows, kTileRowBytes);
    }
    configure_tiles(shapes);
  }

 private:
  int rows_ = 0;
};

template <class Format, class Linear>
class TileBlock {
 public:
  // BlockTiles::fit(rows) has been called.
  TileBlock(const Linear& linear, int64_t row, int rows, int64_t panel, int panels)
      : linear_(linear),
        row_(row),
        panel_(panel),
        groups_(linear.groups),
        x_(linear.x + row * groups_),
        w_(linear.w + panel * groups_ * Format::kBytes),
        w_stride_(groups_ * Format::kBytes),
        rows_(rows),
        panels_(panels) {}

  void run() {
    std::memset(sums_, 0, sizeof(sums_));
    int64_t group = 0;
    for (; group + kGroups <= groups_; group += kGroups) add_groups<kGroups>(group);
    for (; group < groups_; ++group) add_groups<1>(group);
    for (int r = 0; r < rows_; ++r)
      for (int p = 0; p < panels_; ++p) linear_.finish(row_ + r, (panel_ + p) * kPanel, load(sums_[r][p]));
  }

 private:
  static constexpr int kGroups = 4;  // whose dot products wait together, so that a sum is loaded and stored once for all

  template <int Groups>
  ENGINE_INLINE void add_groups(int64_t group) {
#pragma GCC unroll 4
    for (int g = 0; g < Groups; ++g) multiply(group + g, g);
    for (int p = 0; p < panels_; ++p) add_panel<Groups>(group, p);
  }

  ENGINE_INLINE const uint8_t* weights(int64_t group, int panel) const { return w_ + panel * w_stride_ + group * Format::kBytes; }

  // The dot products of one group, to dots_[...][g].
  ENGINE_INLINE void multiply(int64_t group, int g) {
    load_weights<0>(group, g);
    if (panels_ > 1) load_weights<1>(group, g);
    multiply_rows<0>(group);
    if (rows_ > kTileRows) multiply_rows<1>(group);
    store_rows<0>(g);
    if (rows_ > kTileRows) store_rows<1>(g);
  }
  template <int Panel>
  ENGINE_INLINE void load_weights(int64_t group, int g) {
    load_tile<BlockTiles::w(Panel)>(Format::signed_bytes(weights(group, Panel), unpacked_[g][Panel]), kTileRowBytes);
  }
  template <int RowTile>
  ENGINE_INLINE void multiply_rows(int64_t group) {
    load_tile<BlockTiles::x(RowTile)>(x_[RowTile * kTileRows * groups_ + group].quants, groups_ * kActivationBytes);
    multiply_panel<RowTile, 0>();
    if (panels_ > 1) multiply_panel<RowTile, 1>();
  }
  template <int RowTile, int Panel>
  ENGINE_INLINE void multiply_panel() {
    zero_tile<BlockTiles::sum(RowTile, Panel)>();
    add_tile_product<BlockTiles::sum(RowTile, Panel), BlockTiles::x(RowTile), BlockTiles::w(Panel)>();
  }
  template <int RowTile>
  ENGINE_INLINE void store_rows(int g) {
    store_tile<BlockTiles::sum(RowTile, 0)>(dots_[0][RowTile * kTileRows][g], sizeof(dots_[0][0]));
    if (panels_ > 1) store_tile<BlockTiles::sum(RowTile, 1)>(dots_[1][RowTile * kTileRows][g], sizeof(dots_[0][0]));
  }

  template <int Groups>
  ENGINE_INLINE void add_panel(int64_t group, int panel) {
    Vf w_scale[Groups], w_min[Groups];
#pragma GCC unroll 4
    for (int g = 0; g < Groups; ++g) {
      const Half* numbers = reinterpret_cast<const Half*>(weights(group + g, panel) + Format::kQuantBytes);
      w_scale[g] = load(numbers);
      if constexpr (Format::kHasMin) w_min[g] = load(numbers + kPanel);
    }
    const ActivationGroup* x = x_ + group;
    for (int r = 0; r < rows_; ++r, x += groups_) {
      Vf sum = load(sums_[r][panel]);
#pragma GCC unroll 4
      for (int g = 0; g < Groups; ++g) {
        sum += to_float(load_vector<Vi>(dots_[panel][r][g])) * (w_scale[g] * x[g].scale);
        if constexpr (Format::kHasMin) sum += w_min[g] * x[g].scaled_sum;
      }
      store(sums_[r][panel], sum);
    }
  }

  const Linear& linear_;
  const int64_t row_, panel_, groups_;
  const ActivationGroup* const x_;
  const uint8_t* const w_;
  const int64_t w_stride_;
  const int rows_, panels_;
  alignas(64) uint8_t unpacked_[kGroups][kBlockPanels][kGroup * kPanel];
  alignas(64) int32_t dots_[kBlockPanels][kBlockRows][kGroups][kPanel];
  alignas(64) float sums_[kBlockRows][kBlockPanels][kPanel];
};

}  // namespace engine
#endif

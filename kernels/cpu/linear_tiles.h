// Blocks of the quantized linears on AMX: up to 32 rows with up to 2 panels, four tiles of sums.
//
// The integers are those of dot.h and the float operations are those of linear_quantized.cpp in
// their order, so a row has the same bits whichever of the two computes it.
#pragma once

#include <algorithm>
#include <cstring>

#include "activations.h"
#include "amx.h"
#include "sum_tree.h"
#include "weight_formats.h"

#if defined(ENGINE_AMX)

namespace engine {

constexpr int kBlockRows = 2 * kTileRows, kBlockPanels = 2;

// Tiles for blocks of up to kBlockRows rows and products over `Depth` elements, as long as this lives.
template <int Depth>
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
    for (int panel = 0; panel < kBlockPanels; ++panel) shapes.set(w(panel), Depth / 4, kTileRowBytes);
    for (int tile = 0, first = 0; first < rows; ++tile, first += kTileRows) {
      const int tile_rows = std::min(rows - first, kTileRows);
      shapes.set(x(tile), tile_rows, Depth);
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
        x_(linear.x_at(row)),
        w_(linear.w + panel * Format::panel_bytes(groups_)),
        w_stride_(Format::panel_bytes(groups_)),
        rows_(rows),
        panels_(panels) {}

  void run() {
    for (int leaf = 0; leaf < kLeaves; ++leaf) {
      std::memset(sums_, 0, sizeof(sums_));
      const int64_t blocks = groups_ / Format::kGroups, end = leaf_begin(blocks, leaf + 1) * Format::kGroups;
      int64_t group = leaf_begin(blocks, leaf) * Format::kGroups;
      for (; group + kGroups <= end; group += kGroups) add_groups<kGroups>(group);
      for (; group < end; ++group) add_groups<1>(group);
      meet(leaf);
    }
    for (int r = 0; r < rows_; ++r)
      for (int p = 0; p < panels_; ++p) linear_.finish(row_ + r, (panel_ + p) * kPanel, load(sums_[r][p]));
  }

 private:
  static constexpr int kGroups = 4;  // whose dot products wait together, so that a sum is loaded and stored once for all
  static constexpr int kParts = Format::kParts, kDepth = int(kGroup) / kParts, kPartBytes = kDepth * kPanel;
  using Tiles = BlockTiles<kDepth>;

  template <int Groups>
  ENGINE_INLINE void add_groups(int64_t group) {
#pragma GCC unroll 4
    for (int g = 0; g < Groups; ++g) multiply(group + g, g);
    for (int p = 0; p < panels_; ++p) add_panel<Groups>(group, p);
  }

  // The block of a group, and where its codes are.
  ENGINE_INLINE const uint8_t* block(int64_t group, int panel) const { return Format::block_at(w_ + panel * w_stride_, group); }
  ENGINE_INLINE const uint8_t* codes(int64_t group, int panel) const { return Format::group_at(w_ + panel * w_stride_, group); }

  // The dot products of one group, to dots_[...][g].
  ENGINE_INLINE void multiply(int64_t group, int g) {
    const uint8_t* unpacked[kBlockPanels];
    for (int p = 0; p < panels_; ++p) unpacked[p] = Format::signed_bytes(codes(group, p), unpacked_[g][p]);
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      load_tile<Tiles::w(0)>(unpacked[0] + part * kPartBytes, kTileRowBytes);
      if (panels_ > 1) load_tile<Tiles::w(1)>(unpacked[1] + part * kPartBytes, kTileRowBytes);
      multiply_rows<0>(group, part);
      if (rows_ > kTileRows) multiply_rows<1>(group, part);
      store_rows<0>(g * kParts + part);
      if (rows_ > kTileRows) store_rows<1>(g * kParts + part);
    }
  }
  template <int RowTile>
  ENGINE_INLINE void multiply_rows(int64_t group, int part) {
    load_tile<Tiles::x(RowTile)>(x_[RowTile * kTileRows * groups_ + group].quants + part * kDepth, groups_ * kActivationBytes);
    multiply_panel<RowTile, 0>();
    if (panels_ > 1) multiply_panel<RowTile, 1>();
  }
  template <int RowTile, int Panel>
  ENGINE_INLINE void multiply_panel() {
    zero_tile<Tiles::sum(RowTile, Panel)>();
    add_tile_product<Tiles::sum(RowTile, Panel), Tiles::x(RowTile), Tiles::w(Panel)>();
  }
  template <int RowTile>
  ENGINE_INLINE void store_rows(int g) {
    store_tile<Tiles::sum(RowTile, 0)>(dots_[0][RowTile * kTileRows][g], sizeof(dots_[0][0]));
    if (panels_ > 1) store_tile<Tiles::sum(RowTile, 1)>(dots_[1][RowTile * kTileRows][g], sizeof(dots_[0][0]));
  }

  ENGINE_INLINE void meet(int leaf) {
    for (int r = 0; r < rows_; ++r)
      for (int p = 0; p < panels_; ++p) {
        Vf sum[1] = {load(sums_[r][p])};
        trees_[r][p].add(leaf, sum);
        store(sums_[r][p], sum[0]);
      }
  }

  static ENGINE_INLINE Vf total(const typename Format::Numbers& numbers, const int32_t (*dots)[kPanel]) {
    if constexpr (kParts == 1) return to_float(load_vector<Vi>(dots[0]));
    else return numbers.total(load_vector<Vi>(dots[0]), load_vector<Vi>(dots[1]));
  }

  template <int Groups>
  ENGINE_INLINE void add_panel(int64_t group, int panel) {
    typename Format::Numbers numbers[Groups];
#pragma GCC unroll 4
    for (int g = 0; g < Groups; ++g) numbers[g] = Format::numbers(block(group + g, panel), codes(group + g, panel), 0);
    const ActivationGroup* x = x_ + group;
    for (int r = 0; r < rows_; ++r, x += groups_) {
      Vf sum = load(sums_[r][panel]);
#pragma GCC unroll 4
      for (int g = 0; g < Groups; ++g) sum = numbers[g].add(sum, total(numbers[g], dots_[panel][r] + g * kParts), x[g]);
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
  alignas(64) int32_t dots_[kBlockPanels][kBlockRows][kGroups * kParts][kPanel];
  alignas(64) float sums_[kBlockRows][kBlockPanels][kPanel];
  SumTree<1> trees_[kBlockRows][kBlockPanels];
};

}  // namespace engine
#endif

// linear_w8a8 and embedding_w8a8: signed bytes with a scale for each row of the weights (linear/formats.py), and activations
// likewise: what quantize_rows gives.
//
// Every output is float(sum over k of q_w * q_x) * (scale_w * scale_x), each operation rounded on its own, and then what
// epilogue.h says. The sum is of integers and exact, so that its order is of no importance: there are no leaves here.

#include "linear_quantized.h"

namespace engine {
namespace {

constexpr int64_t kMostGroups = kMostRowQuads / kQuads;

struct RowLinear : Band {
  using Activation = RowDot::Activation;

  int64_t x_bytes() const { return row_bytes(groups * kGroup); }
  const int8_t* x_at(int64_t row) const { return static_cast<const int8_t*>(x) + row * x_bytes(); }
  const RowNumbers& numbers(int64_t row) const { return *reinterpret_cast<const RowNumbers*>(x_at(row) + row_quants(groups * kGroup)); }
  const uint8_t* panel_at(int64_t panel) const { return w + panel * W8A8::panel_bytes(groups); }

  // Rows of quants as RowDot reads them.
  struct Quants {
    const Activation* first;
    int64_t stride;
  };
  Quants quants(int64_t row, int64_t last_row) const {
    const int8_t* from = x_at(row);
    if constexpr (std::is_same_v<Activation, int8_t>) return {reinterpret_cast<const Activation*>(from), x_bytes()};
    else {
      static thread_local Scratch scratch;
      const int64_t stride = groups * kGroup + kLine / int64_t(sizeof(Activation));  // so that rows do not all begin in the same cache set
      Activation* wide = scratch.take<Activation>((last_row - row) * stride);
      for (int64_t r = 0; r < last_row - row; ++r) std::copy_n(from + r * x_bytes(), groups * kGroup, wide + r * stride);
      return {wide, stride};
    }
  }

  // `Rows` rows with the `Vectors` * kLanes outputs from vector `half` of a panel on.
  template <int Rows, int Vectors>
  __attribute__((noinline)) void block(Quants x, int64_t row, int64_t panel, int half, bool ahead) const {
    const uint8_t* codes = panel_at(panel) + W8A8::kFirstGroup;
    const int64_t panel_bytes = W8A8::panel_bytes(groups);
    // Every third row has a pointer, and the others lie one or two strides behind it: else the compiler keeps an address for each
    // load, on the stack.
    constexpr int kPointers = (Rows + 2) / 3;
    const Activation* at[kPointers];
#pragma GCC unroll 4
    for (int i = 0; i < kPointers; ++i) at[i] = x.first + 3 * i * x.stride;
    RowDot dots[Rows][Vectors];
    for (int64_t group = 0; group < groups; ++group, codes += W8A8::kGroupBytes) {
      if (ahead) prefetch<Vectors>(codes);
      asm("" : "+r"(codes));
#pragma GCC unroll 4
      for (int i = 0; i < kPointers; ++i) asm("" : "+r"(at[i]));
#pragma GCC unroll 8
      for (int quad = 0; quad < kQuads; ++quad) {
        RowDot::Weight weight[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v)
          weight[v] = RowDot::load(codes + (half + v) / kHalves * panel_bytes + quad * kQuadBytes + (half + v) % kHalves * 4 * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
          const auto activation = RowDot::quad(at[r / 3] + r % 3 * x.stride + 4 * quad);
#pragma GCC unroll 8
          for (int v = 0; v < Vectors; ++v) dots[r][v].add(weight[v], activation);
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < kPointers; ++i) at[i] += kGroup;
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) finish(row + r, panel * kPanel + (half + v) * kLanes, dots[r][v].total(numbers(row + r).sum));
  }

  // The weights that this thread will most likely read next: the processor does not see that one panel follows another.
  template <int Vectors>
  ENGINE_INLINE void prefetch(const uint8_t* codes) const {
    constexpr int64_t kAhead = 8 << 10;
#pragma GCC unroll 2
    for (int p = 0; p < (Vectors + kHalves - 1) / kHalves; ++p)
#pragma GCC unroll 8
      for (int line = 0; line < W8A8::kGroupBytes; line += int(kLine))
        __builtin_prefetch(codes + p * W8A8::panel_bytes(groups) + kAhead + line, 0, 3);
  }

  ENGINE_INLINE void finish(int64_t row, int64_t column, Vi total) const {
    const float* scales = reinterpret_cast<const float*>(panel_at(column / kPanel)) + column % kPanel;
    const Vf sum = to_float(total) * (load(scales) * numbers(row).scale);
    if (column + kLanes > out_features) return finish_edge(row, column, sum);
    store(out + row * stride + column, epilogue.apply(sum, row, column));
  }

  // The last outputs, fewer than a vector.
  __attribute__((noinline)) void finish_edge(int64_t row, int64_t column, Vf sum) const {
    for (int64_t n = column; n < out_features; ++n) out[row * stride + n] = epilogue.apply_one(sum[n - column], row, n);
  }

  // As many rows as the registers hold the sums of.
#if defined(ENGINE_PAIRS)
  static constexpr int kRows = 6;
#elif defined(ENGINE_AVX512)
  static constexpr int kRows = 12;
#else
  static constexpr int kRows = 10;
#endif

  void tile(int64_t row, int64_t last_row, int64_t panel, int64_t last_panel) const {
#if defined(ENGINE_AMX)
    if (last_row - row >= kTileRows) return tile_blocks(row, last_row, panel, last_panel);
#endif
    const Quants x = quants(row, last_row);
    if (last_row - row == 1) {
      for (; panel < last_panel; ++panel) block<1, kHalves>(x, row, panel, 0, true);
      return;
    }
    for (; panel + kPanelsAtOnce <= last_panel; panel += kPanelsAtOnce) columns<kPanelsAtOnce>(x, row, last_row, panel);
    for (; panel < last_panel; ++panel) columns<1>(x, row, last_row, panel);
  }

  // All rows with each vector of a panel or, where that is one, of several panels.
  template <int Vectors>
  void columns(Quants x, int64_t first_row, int64_t last_row, int64_t panel) const {
    for (int half = 0; half < kHalves; ++half)
      in_blocks<kRows>(first_row, last_row, [&]<int Rows>(int64_t row) {
        block<Rows, Vectors>({x.first + (row - first_row) * x.stride, x.stride}, row, panel, half, half == 0 && row == first_row);
      });
  }

#if defined(ENGINE_AMX)
  // Two groups fill the depth of a tile, and nothing is stored before the sum is whole.
  using Tiles = BlockTiles<kTileRowBytes>;

  void tile_blocks(int64_t first_row, int64_t last_row, int64_t panel, int64_t last_panel) const {
    Tiles tiles;
    for (; panel < last_panel; panel += kBlockPanels)
      for (int64_t row = first_row; row < last_row; row += kBlockRows) {
        const int rows = int(std::min<int64_t>(last_row - row, kBlockRows));
        tiles.fit(rows);
        const bool two_panels = last_panel - panel > 1;
        if (rows > kTileRows) two_panels ? tile_block<2, 2>(row, rows, panel) : tile_block<2, 1>(row, rows, panel);
        else two_panels ? tile_block<1, 2>(row, rows, panel) : tile_block<1, 1>(row, rows, panel);
      }
  }

  template <int RowTiles, int Panels>
  void tile_block(int64_t row, int rows, int64_t panel) const {
    each_sum<RowTiles, Panels>([]<int Tile, int Panel>() { zero_tile<Tiles::sum(Tile, Panel)>(); });
    const int8_t* quants = x_at(row);
    alignas(64) uint8_t last[Panels][2 * W8A8::kGroupBytes] = {};  // of an odd number of groups, with zeros after it
    for (int64_t group = 0; group < groups; group += 2) {
      const uint8_t* codes[Panels];
      for (int p = 0; p < Panels; ++p) {
        codes[p] = panel_at(panel + p) + W8A8::kFirstGroup + group * W8A8::kGroupBytes;
        if (group + 1 == groups) codes[p] = static_cast<const uint8_t*>(std::memcpy(last[p], codes[p], W8A8::kGroupBytes));
      }
      load_tile<Tiles::w(0)>(codes[0], kTileRowBytes);
      if constexpr (Panels > 1) load_tile<Tiles::w(1)>(codes[1], kTileRowBytes);
      load_tile<Tiles::x(0)>(quants + group * kGroup, x_bytes());
      if constexpr (RowTiles > 1) load_tile<Tiles::x(1)>(quants + kTileRows * x_bytes() + group * kGroup, x_bytes());
      each_sum<RowTiles, Panels>([]<int Tile, int Panel>() { add_tile_product<Tiles::sum(Tile, Panel), Tiles::x(Tile), Tiles::w(Panel)>(); });
    }
    alignas(64) int32_t sums[kBlockRows][kBlockPanels][kPanel];
    each_sum<RowTiles, Panels>([&]<int Tile, int Panel>() { store_tile<Tiles::sum(Tile, Panel)>(sums[Tile * kTileRows][Panel], sizeof(sums[0])); });
    for (int r = 0; r < rows; ++r)
      for (int p = 0; p < Panels; ++p) finish(row + r, (panel + p) * kPanel, load_vector<Vi>(sums[r][p]));
  }

  template <int RowTiles, int Panels, class Use>
  static ENGINE_INLINE void each_sum(const Use& use) {
    use.template operator()<0, 0>();
    if constexpr (Panels > 1) use.template operator()<0, 1>();
    if constexpr (RowTiles > 1) use.template operator()<1, 0>();
    if constexpr (RowTiles > 1 && Panels > 1) use.template operator()<1, 1>();
  }
#endif

  static void tile_of(const Band& band, int64_t row, int64_t last_row, int64_t panel, int64_t last_panel) {
    RowLinear{band}.tile(row, last_row, panel, last_panel);
  }
};

constexpr BandFormat kOfRows = {1, RowLinear::kRows, kRowStep<RowLinear::kRows>, W8A8::panel_bytes,
                                [](int64_t groups) { return groups * kGroup * int64_t(sizeof(RowLinear::Activation)); }, RowLinear::tile_of};

Tensor linear_w8a8(Tensor x, Tensor w, std::optional<Tensor> bias, std::optional<Tensor> residual, int64_t out_features, double multiplier) {
  check_contiguous(x, ScalarType::Byte, 2, "x");
  STD_TORCH_CHECK(x.size(1) % kLine == 0 && x.size(1) > kLine, "x must be what quantize_rows gives");
  check_contiguous(w, ScalarType::Byte, 3, "w");
  const int64_t groups = (w.size(2) - W8A8::kHeadBytes) / W8A8::kGroupBytes, x_groups = (x.size(1) - kLine) / kGroup;
  check_weight<W8A8>(w, row_bytes(groups * kGroup) == x.size(1) ? groups : x_groups);
  STD_TORCH_CHECK(groups <= kMostGroups, "sums of ", groups * kGroup, " products do not fit into 32 bits");
  const int64_t rows = x.size(0);
  const Epilogue epilogue(bias, multiplier, residual, rows, out_features);
  Tensor out = empty_floats({rows, out_features});
  const Band band{&kOfRows, x.data_ptr(), data<uint8_t>(w), epilogue, static_cast<float*>(out.data_ptr()), rows, out_features, groups, out_features};
  STD_TORCH_CHECK(out_features > 0 && w.size(0) == band.panels(), "w has ", w.size(0), " panels, not ", band.panels());
  compute_linear({&band, 1});
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) {
  m.impl("linear_w8a8", TORCH_BOX(&linear_w8a8));
  m.impl("embedding_w8a8", TORCH_BOX(&embedding<W8A8>));
}

}  // namespace engine

ENGINE_C_LINEAR(w8a8, engine::linear_w8a8, engine::embedding<engine::W8A8>)

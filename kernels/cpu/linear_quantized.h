// linear_* and embedding_* of a block format: weights in the layout of linear/formats.py,
// activations as activations.h has them.
//
// Every output is, with g running over the groups of 32 of each leaf of sum_tree.h in order and every
// operation rounded to float32 on its own (this is also what linear/reference.py computes, bit for bit):
//   sum += float(dot(q_w, q_x)) * (scale_w * scale_x)
//   with minima, sum += min_w * (scale_x * float(sum(q_x)))
// and last what epilogue.h says. Of two levels, scale_w is d * scale and min_w is -(m * min), which are exact.
// Where 16 weights have a scale, it is in the integers: dot is scale_a * dot_a + scale_b * dot_b, and scale_w is d;
// and their minima are: sum += (min_a * sum_a + min_b * sum_b) * (-m * scale_x). Of a zero point, min_w is -(d * zero_point).
// With scales in e4m3, dot is a sum of two exact products that rounds once, and scale_w is d or 1 / d.
#pragma once

#include <algorithm>

#include "block_formats.h"
#include "c_linear.h"
#include "linear_bands.h"
#include "linear_tiles.h"
#include "sum_tree.h"
#include "weight_formats.h"

namespace engine {
namespace {  // each file that includes this has the formats that it names

// Of which a task has a multiple: of the rows of a block, or of a block of tiles.
#if defined(ENGINE_AMX)
template <int Rows>
constexpr int64_t kRowStep = kBlockRows;
#else
template <int Rows>
constexpr int64_t kRowStep = Rows;
#endif

// Of a thread: formats take turns.
inline Scratch& unpacked_weights() {
  static thread_local Scratch scratch;
  return scratch;
}

template <class Format>
struct QuantizedLinear : Band {
  using Numbers = typename Format::Numbers;

  const ActivationGroup* x_at(int64_t row) const { return static_cast<const ActivationGroup*>(x) + row * groups; }

  // Adds the products of one group, of `Rows` rows with `Vectors` vectors of outputs.
  template <int Rows, int Vectors, class Weights>
  ENGINE_INLINE void add(const Weights& weights, const ActivationGroup* x_row, Vf (&sums)[Rows * Vectors]) const {
    typename Format::Dots dots[Rows][Vectors];
#pragma GCC unroll 8
    for (int step = 0; step < Format::kSteps; ++step) {
      typename Format::Weight weight[Vectors];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) weight[v] = weights.load(v, step);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) Format::add(dots[r][v], weight[v], x_row[r * groups].quants, step);
    }
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      const Numbers& numbers = weights.numbers(v);  // not before the products, which need the registers
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const ActivationGroup& x_group = x_row[r * groups];
        Vf& sum = sums[r * Vectors + v];
        sum = numbers.add(sum, numbers.total(dots[r][v], x_group), x_group);
      }
    }
  }

  // Weights of a group as they lie in panels, from the first vector of outputs `n` of a panel on. Vector v of a run of panels is at the
  // same place in its panel.
  struct Packed {
    const uint8_t *first, *block, *codes;
    int64_t panel_bytes;
    int n;

    ENGINE_INLINE int64_t panel(int v) const { return v / kHalves * panel_bytes; }
    ENGINE_INLINE int output(int v) const { return n + v % kHalves * kLanes; }
    ENGINE_INLINE typename Format::Weight load(int v, int step) const { return Format::load(codes + panel(v) + 4 * output(v), step); }
    ENGINE_INLINE Numbers numbers(int v) const {
      return Format::numbers((Format::kOfRows ? first : block) + panel(v), codes + panel(v), output(v));
    }
  };
  // The same, unpacked: for many rows that costs less than to do it for each few of them.
  struct UnpackedGroup {
    typename Format::Unpacked codes;
    Numbers of_codes;
  };
  struct Unpacked {
    const UnpackedGroup* group;
    int64_t groups;  // between vectors

    ENGINE_INLINE typename Format::Weight load(int v, int step) const { return Format::load(group[v * groups].codes, step); }
    ENGINE_INLINE const Numbers& numbers(int v) const { return group[v * groups].of_codes; }
  };

  // The sums of a block of rows. add_blocks(count, x_row, sum) adds those of the next `count` blocks of weights.
  template <int Rows, int Vectors, class AddBlocks>
  ENGINE_INLINE void leaves(int64_t row, int64_t column, const AddBlocks& add_blocks) const {
    const ActivationGroup* x_row = x_at(row);
    const int64_t blocks = groups / Format::kGroups;
    Vf sum[Rows * Vectors];
    SumTree<Rows * Vectors> tree;
    for (int leaf = 0; leaf < kLeaves; ++leaf) {
#pragma GCC unroll 16
      for (int i = 0; i < Rows * Vectors; ++i) sum[i] = Vf{};
      const int64_t count = leaf_begin(blocks, leaf + 1) - leaf_begin(blocks, leaf);
      add_blocks(count, x_row, sum);
      x_row += count * Format::kGroups;
      tree.add(leaf, sum);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) finish(row + r, column + v * kLanes, sum[r * Vectors + v]);
  }

  // With `ahead`, the weights that this thread will most likely read next come closer meanwhile: the
  // processor's own prefetching does not see that one panel follows another.
  template <int Rows, int Vectors>
  __attribute__((noinline)) void block(int64_t row, int64_t panel, int half, bool ahead) const {
    const int64_t panel_bytes = Format::panel_bytes(groups);
    const uint8_t* first = w + panel * panel_bytes;
    Packed weights{first, first, nullptr, panel_bytes, half * kLanes};
    leaves<Rows, Vectors>(row, panel * kPanel + weights.n, [&](int64_t blocks, const ActivationGroup* x_row, auto& sum) __attribute__((always_inline)) {
      for (; blocks > 0; --blocks, weights.block += Format::kStride)
#pragma GCC unroll 1
        for (int group = 0; group < Format::kGroups; ++group, ++x_row) {
          weights.codes = weights.block + Format::kFirstGroup + group * Format::kGroupBytes;
          if (ahead) prefetch<Vectors>(weights.codes);
          add<Rows, Vectors>(weights, x_row, sum);
        }
    });
  }
  template <int Rows, int Vectors>
  __attribute__((noinline)) void block(int64_t row, int64_t column, const UnpackedGroup* from) const {
    Unpacked weights{from, groups};
    leaves<Rows, Vectors>(row, column, [&](int64_t blocks, const ActivationGroup* x_row, auto& sum) __attribute__((always_inline)) {
      for (int64_t left = blocks * Format::kGroups; left > 0; --left, ++weights.group, ++x_row) add<Rows, Vectors>(weights, x_row, sum);
    });
  }

  ENGINE_INLINE void finish(int64_t row, int64_t column, Vf sum) const {
    if (column + kLanes > out_features) return finish_edge(row, column, sum);
    store(out + row * stride + column, epilogue.apply(sum, row, column));
  }

  // The last outputs, fewer than a vector.
  __attribute__((noinline)) void finish_edge(int64_t row, int64_t column, Vf sum) const {
    for (int64_t n = column; n < out_features; ++n) out[row * stride + n] = epilogue.apply_one(sum[n - column], row, n);
  }

  // The weights of the panels at hand, kAhead bytes further on.
  template <int Vectors>
  ENGINE_INLINE void prefetch(const uint8_t* group) const {
    constexpr int kPanels = (Vectors + kHalves - 1) / kHalves, kBytes = Format::kStride / Format::kGroups;
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 16
      for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(group + p * Format::panel_bytes(groups) + kAhead + line, 0, 3);
  }

  // Rows of a block at most. The sums of so many leave the registers, but only between groups; to load weights and activations once
  // more for a smaller block costs more.
#if defined(ENGINE_AVX512)
  static constexpr int kRows = Format::kParts == 1 ? 6 : 4;
#else
  static constexpr int kRows = 8;
#endif
  static constexpr int64_t kUnpackedRows = 4 * kRows;  // of so many on, unpacking once pays
  static constexpr int64_t kAhead = 8 << 10;  // of 2 to 16 KiB what measured best
  static constexpr int kVectorsAtOnce = 2;    // of two panels, or of one

  void tile(int64_t row, int64_t last_row, int64_t panel, int64_t last_panel) const {
#if defined(ENGINE_AMX)
    if (last_row - row >= kTileRows) return tile_blocks(row, last_row, panel, last_panel);
#endif
    if (last_row - row == 1) {  // a single row reads the weights once, in order
      for (; panel < last_panel; ++panel) block<1, kHalves>(row, panel, 0, true);
      return;
    }
    UnpackedGroup* unpacked = nullptr;
    if constexpr (Format::kUnpacks)
      if (last_row - row >= kUnpackedRows) unpacked = unpacked_weights().take<UnpackedGroup>(kVectorsAtOnce * groups);
    for (; panel + kPanelsAtOnce <= last_panel; panel += kPanelsAtOnce) panels<kPanelsAtOnce>(row, last_row, panel, unpacked);
    for (; panel < last_panel; ++panel) panels<1>(row, last_row, panel, unpacked);
  }
  // All rows of a tile with a panel or two.
  template <int Panels>
  void panels(int64_t row, int64_t last_row, int64_t panel, UnpackedGroup* unpacked) const {
    constexpr int kVectors = std::min(Panels * kHalves, kVectorsAtOnce);
    for (int v = 0; v < Panels * kHalves; v += kVectors) {
      if (unpacked != nullptr)
        for (int i = 0; i < kVectors; ++i) unpack(panel + (v + i) / kHalves, (v + i) % kHalves, unpacked + i * groups);
      in_blocks<kRows>(row, last_row, [&]<int Rows>(int64_t first) {
        if constexpr (Format::kUnpacks && Rows == kRows)  // the last few rows are not worth more code
          if (unpacked != nullptr) return block<Rows, kVectors>(first, panel * kPanel + v * kLanes, unpacked);
        block<Rows, kVectors>(first, panel, v, v == 0 && first == row);
      });
    }
  }
  __attribute__((noinline)) void unpack(int64_t panel, int half, UnpackedGroup* to) const {
    const uint8_t* from = w + panel * Format::panel_bytes(groups);
    for (int64_t group = 0; group < groups; ++group) {
      const uint8_t* codes = Format::group_at(from, group);
      Format::unpack(codes + 4 * half * kLanes, to[group].codes);
      to[group].of_codes = Format::numbers(Format::block_at(from, group), codes, half * kLanes);
    }
  }

#if defined(ENGINE_AMX)
  // For fewer rows than a tile has, unpacking and waiting for the tiles would cost what they save.
  void tile_blocks(int64_t first_row, int64_t last_row, int64_t panel, int64_t last_panel) const {
    BlockTiles<kGroup / Format::kParts> tiles;
    for (; panel < last_panel; panel += kBlockPanels)
      for (int64_t row = first_row; row < last_row; row += kBlockRows) {
        const int rows = int(std::min<int64_t>(last_row - row, kBlockRows));
        tiles.fit(rows);
        TileBlock<Format, QuantizedLinear>(*this, row, rows, panel, int(std::min<int64_t>(last_panel - panel, kBlockPanels))).run();
      }
  }
#endif

  static void tile_of(const Band& band, int64_t row, int64_t last_row, int64_t panel, int64_t last_panel) {
    QuantizedLinear{band}.tile(row, last_row, panel, last_panel);
  }
};

template <class Format>
constexpr BandFormat kBandFormat = {Format::kGroups, QuantizedLinear<Format>::kRows, kRowStep<QuantizedLinear<Format>::kRows>, Format::panel_bytes,
                                    [](int64_t groups) { return groups * kActivationBytes; }, QuantizedLinear<Format>::tile_of};

template <class Format>
void check_weight(const Tensor& w, int64_t groups) {
  check_contiguous(w, ScalarType::Byte, 3, "w");
  const int64_t blocks = Format::kOfRows ? 1 : groups / Format::kGroups;
  STD_TORCH_CHECK(groups % Format::kGroups == 0 && w.size(1) == blocks && blocks * w.size(2) == Format::panel_bytes(groups), "w is not packed for ", groups, " groups");
}

template <class Format>
Tensor linear(Tensor x, Tensor w, std::optional<Tensor> bias, std::optional<Tensor> residual, int64_t out_features,
              double multiplier) {
  check_activations(x);
  const int64_t rows = x.size(0), groups = x.size(1);
  check_weight<Format>(w, groups);
  const Epilogue epilogue(bias, multiplier, residual, rows, out_features);
  Tensor out = empty_floats({rows, out_features});
  const Band band{&kBandFormat<Format>, data<ActivationGroup>(x), data<uint8_t>(w), epilogue, static_cast<float*>(out.data_ptr()), rows, out_features,
                  groups, out_features};
  STD_TORCH_CHECK(out_features > 0 && w.size(0) == band.panels(), "w has ", w.size(0), " panels, not ", band.panels());
  compute_linear({&band, 1});
  return out;
}

template <class Format>
Tensor embedding(Tensor tokens, Tensor w, int64_t dim, double multiplier) {
  check_contiguous(tokens, ScalarType::Int, 1, "tokens");
  check_weight<Format>(w, groups_of(dim));
  const int64_t count = tokens.size(0), panel_bytes = Format::panel_bytes(groups_of(dim));
  const int32_t* token = data<int32_t>(tokens);
  for (int64_t t = 0; t < count; ++t)
    STD_TORCH_CHECK(token[t] >= 0 && token[t] < w.size(0) * kPanel, "token ", token[t], " is outside the vocabulary");
  Tensor out = empty_floats({count, dim});
  float* to = static_cast<float*>(out.data_ptr());
  const uint8_t* from = data<uint8_t>(w);
  parallel_for(count, 1, threads_for(count * dim), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const uint8_t* panel = from + token[t] / kPanel * panel_bytes;
      const int n = token[t] % kPanel;
      for (int64_t k = 0; k < dim; ++k) {
        const int64_t group = k / kGroup;
        const float value = Format::value(Format::block_at(panel, group), Format::group_at(panel, group), int(k % kGroup), n);
        to[t * dim + k] = value * float(multiplier);
      }
    }
  });
  return out;
}

}  // namespace
}  // namespace engine

// The operators and C functions of a file's formats, and what linear_mixed needs of them. kernel: the last part of the operators' names.
#define ENGINE_REGISTER_FORMAT(kernel, Format)                                           \
  m.impl("linear_" #kernel, TORCH_BOX(&engine::linear<engine::Format>)); \
  m.impl("embedding_" #kernel, TORCH_BOX(&engine::embedding<engine::Format>));
#define ENGINE_EXPORT_FORMAT(kernel, Format)                                                            \
  ENGINE_C_LINEAR(kernel, engine::linear<engine::Format>, engine::embedding<engine::Format>)            \
  namespace engine {                                                                                    \
  extern const BandFormat band_##kernel;                                                                \
  constinit const BandFormat band_##kernel = kBandFormat<Format>;                                       \
  }
#define ENGINE_BLOCK_FORMATS(FORMATS)                                                   \
  STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) { FORMATS(ENGINE_REGISTER_FORMAT) } \
  FORMATS(ENGINE_EXPORT_FORMAT)

// linear_* and embedding_* for q8_0, q4_0 and q4_1: weights in the layout of linear/formats.py,
// activations as activations.h has them.
//
// Every output is, with g running over the groups of 32 in order and every operation rounded
// to float32 on its own (this is also what linear/reference.py computes, bit for bit):
//   q8_0, q4_0   sum += float(dot(q_w, q_x)) * (scale_w * scale_x)
//   q4_1         the same, then sum += min_w * (scale_x * float(sum(q_x)))
// and last what epilogue.h says.

#include <algorithm>

#include "activations.h"
#include "c_linear.h"
#include "dot.h"
#include "linear_tiles.h"

namespace engine {
namespace {

constexpr int kQuads = kGroup / 4;
constexpr int kQuadBytes = 4 * kPanel;  // four consecutive k of the 16 outputs of a panel

// One group of one panel, as bytes: quants first, 16 float16 scales, then 16 mins if any.
struct Q8_0 {
  static constexpr int kQuantBytes = kQuads * kQuadBytes;
  static constexpr int kBytes = kQuantBytes + 2 * kPanel;
  static constexpr bool kHasMin = false;
  static constexpr int kSteps = kQuads;
  using Dot = ByteDot;
  using Weight = ByteDot::Weight;

  static ENGINE_INLINE Weight load(const uint8_t* from) { return ByteDot::prepare(load_vector<Vb>(from)); }
  static ENGINE_INLINE void add(Dot& sum, Weight weight, const int8_t* x) { sum.add(weight, splat_quad(x)); }
  static ENGINE_INLINE Vi total(const Dot& sum, int32_t x_sum) { return sum.total(x_sum); }
  static int quant(const uint8_t* block, int k, int n) { return int8_t(block[k / 4 * kQuadBytes + n * 4 + k % 4]); }

  // The quants of a group as int8, with 16 * 4 bytes for every four k: here, where they lie.
  static ENGINE_INLINE const uint8_t* signed_bytes(const uint8_t* block, uint8_t*) { return block; }
};

// The low nibbles hold k 0..15, the high ones k 16..31.
template <bool HasMin, int Zero>
struct Nibbles {
  static constexpr int kQuantBytes = kQuads / 2 * kQuadBytes;
  static constexpr int kBytes = kQuantBytes + (HasMin ? 4 : 2) * kPanel;
  static constexpr bool kHasMin = HasMin;
  static constexpr int kSteps = kQuads / 2;
  using Dot = NibbleDot;
  struct Weight {
    Vb low, high;
  };

  static ENGINE_INLINE Weight load(const uint8_t* from) {
    const Vb packed = load_vector<Vb>(from);
    return {low_nibbles(packed), high_nibbles(packed)};
  }
  static ENGINE_INLINE void add(Dot& sum, Weight weight, const int8_t* x) {
    sum.add(weight.low, splat_quad(x));
    sum.add(weight.high, splat_quad(x + kGroup / 2));
  }
  static ENGINE_INLINE Vi total(const Dot& sum, int32_t x_sum) { return Zero == 0 ? sum.total() : sum.total() - splat(x_sum) * Zero; }
  static int quant(const uint8_t* block, int k, int n) {
    return (block[k % 16 / 4 * kQuadBytes + n * 4 + k % 4] >> (k < 16 ? 0 : 4) & 0x0f) - Zero;
  }

  static ENGINE_INLINE const uint8_t* signed_bytes(const uint8_t* block, uint8_t* to) {
#pragma GCC unroll 8
    for (int at = 0; at < kQuantBytes; at += int(sizeof(Vb))) {
      const Weight weight = load(block + at);
      store(to + at, weight.low - uint8_t(Zero));
      store(to + kQuantBytes + at, weight.high - uint8_t(Zero));
    }
    return to;
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

template <class Format>
struct QuantizedLinear {
  const ActivationGroup* x;
  const uint8_t* w;
  Epilogue epilogue;
  float* out;
  int64_t rows, out_features, panels, groups;

  // The dot products of one group: of `Rows` rows with the `Vectors` * kLanes outputs whose
  // weights begin at `block`.
  template <int Rows, int Vectors>
  ENGINE_INLINE void dot(const uint8_t* block, const ActivationGroup* x_row, Vi (&dots)[Rows][Vectors]) const {
    typename Format::Dot sum[Rows][Vectors];
#pragma GCC unroll 8
    for (int quad = 0; quad < Format::kSteps; ++quad) {
      typename Format::Weight weight[Vectors];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) weight[v] = Format::load(at(block, v) + quad * kQuadBytes);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) Format::add(sum[r][v], weight[v], x_row[r * groups].quants + quad * 4);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) dots[r][v] = Format::total(sum[r][v], x_row[r * groups].sum);
  }

  // Vector v of a run of panels, of which the first begins at `block`.
  ENGINE_INLINE const uint8_t* at(const uint8_t* block, int v) const {
    return block + v / kHalves * groups * Format::kBytes + v % kHalves * 4 * kLanes;
  }

  // With Ahead, the weights that this thread will most likely read next come closer meanwhile: the
  // processor's own prefetching does not see that one panel follows another.
  template <int Rows, int Vectors, bool Ahead>
  __attribute__((noinline)) void block(int64_t row, int64_t panel, int half) const {
    const ActivationGroup* x_row = x + row * groups;
    const uint8_t* block = w + panel * groups * Format::kBytes + half * 4 * kLanes;
    const Half* numbers = reinterpret_cast<const Half*>(w + panel * groups * Format::kBytes + Format::kQuantBytes) + half * kLanes;
    Vf sum[Rows][Vectors] = {};
    for (int64_t g = 0; g < groups; ++g, block += Format::kBytes, numbers += Format::kBytes / 2, ++x_row) {
      if constexpr (Ahead) prefetch<Vectors>(block);
      Vi dots[Rows][Vectors];
      dot<Rows, Vectors>(block, x_row, dots);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        const Half* from = numbers + v / kHalves * groups * (Format::kBytes / 2) + v % kHalves * kLanes;
        const Vf w_scale = load(from);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) sum[r][v] += to_float(dots[r][v]) * (w_scale * x_row[r * groups].scale);
        if constexpr (Format::kHasMin) {
          const Vf w_min = load(from + kPanel);
#pragma GCC unroll 8
          for (int r = 0; r < Rows; ++r) sum[r][v] += w_min * x_row[r * groups].scaled_sum;
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) finish(row + r, panel * kPanel + (half + v) * kLanes, sum[r][v]);
  }

  ENGINE_INLINE void finish(int64_t row, int64_t column, Vf sum) const {
    if (column + kLanes > out_features) return finish_edge(row, column, sum);
    store(out + row * out_features + column, epilogue.apply(sum, row, column));
  }

  // The last outputs, fewer than a vector.
  __attribute__((noinline)) void finish_edge(int64_t row, int64_t column, Vf sum) const {
    for (int64_t n = column; n < out_features; ++n) out[row * out_features + n] = epilogue.apply_one(sum[n - column], row, n);
  }

  // The weights of the panels at hand, kAhead bytes further on.
  template <int Vectors>
  ENGINE_INLINE void prefetch(const uint8_t* block) const {
    constexpr int kPanels = (Vectors + kHalves - 1) / kHalves;
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 16
      for (int line = 0; line < Format::kBytes; line += 64) __builtin_prefetch(block + p * groups * Format::kBytes + kAhead + line, 0, 3);
  }

  // All rows of a tile with the same few vectors of weights. Blocks of few rows wait for their own
  // sums, so the last rows are shared out evenly: 8 are 4 and 4, not 6 and 2.
  template <int Vectors>
  void columns(int64_t row, int64_t last_row, int64_t panel, int half) const {
    bool ahead = half == 0;
    while (row < last_row) {
      const int64_t left = last_row - row;
      const int64_t next = left <= kRows ? left : left >= 2 * kRows ? kRows : (left + 1) / 2;
      rows_at_once<kRows, Vectors>(next, row, panel, half, ahead);
      row += next;
      ahead = false;
    }
  }
  template <int Most, int Vectors>
  ENGINE_INLINE void rows_at_once(int64_t count, int64_t row, int64_t panel, int half, bool ahead) const {
    if constexpr (Most > 1)
      if (count < Most) return rows_at_once<Most - 1, Vectors>(count, row, panel, half, ahead);
    ahead ? block<Most, Vectors, true>(row, panel, half) : block<Most, Vectors, false>(row, panel, half);
  }

#if defined(ENGINE_AVX512)
  static constexpr int kRows = 6, kPanelsAtOnce = 2;
#else
  static constexpr int kRows = 5, kPanelsAtOnce = 1;
#endif
#if defined(ENGINE_AMX)
  static constexpr int64_t kRowStep = kBlockRows, kRowCache = 1 << 20;  // of the 2 MiB that every processor with AMX has per core
#else
  static constexpr int64_t kRowStep = kRows, kRowCache = 256 << 10;
#endif
  static constexpr int64_t kAhead = 8 << 10;            // of 2 to 16 KiB what measured best
  static constexpr int64_t kReadAhead = 256 << 10;      // bytes: what memory delivers between two calls

  void tile(int64_t row, int64_t last_row, int64_t panel, int64_t last_panel) const {
#if defined(ENGINE_AMX)
    if (last_row - row >= kTileRows) return tile_blocks(row, last_row, panel, last_panel);
#endif
    if (last_row - row == 1) {  // a single row reads the weights once, in order
      for (; panel < last_panel; ++panel) block<1, kHalves, true>(row, panel, 0);
      return;
    }
    for (; panel + kPanelsAtOnce <= last_panel; panel += kPanelsAtOnce) columns_of<kPanelsAtOnce>(row, last_row, panel);
    for (; panel < last_panel; ++panel) columns_of<1>(row, last_row, panel);
  }
  template <int Panels>
  void columns_of(int64_t row, int64_t last_row, int64_t panel) const {
    if constexpr (kHalves == 1) columns<Panels>(row, last_row, panel, 0);
    else
      for (int half = 0; half < kHalves; ++half) columns<1>(row, last_row, panel, half);
  }

#if defined(ENGINE_AMX)
  // For fewer rows than a tile has, unpacking and waiting for the tiles would cost what they save.
  void tile_blocks(int64_t first_row, int64_t last_row, int64_t panel, int64_t last_panel) const {
    BlockTiles tiles;
    for (; panel < last_panel; panel += kBlockPanels)
      for (int64_t row = first_row; row < last_row; row += kBlockRows) {
        const int rows = int(std::min<int64_t>(last_row - row, kBlockRows));
        tiles.fit(rows);
        TileBlock<Format, QuantizedLinear>(*this, row, rows, panel, int(std::min<int64_t>(last_panel - panel, kBlockPanels))).run();
      }
  }
#endif

  void run() const {
    // Rows whose activations stay in the second cache level while panels stream by.
    const int64_t tile_rows = std::clamp<int64_t>(kRowCache / (groups * kActivationBytes) / kRowStep * kRowStep, kRowStep, 64 * kRows);
    const int threads = threads_for(rows * groups * kGroup * out_features);
    const int64_t run = std::clamp<int64_t>(panels / (8 * threads) / kPanelsAtOnce, 1, 8 / kPanelsAtOnce) * kPanelsAtOnce;  // panels per task: long streams, even shares
    const int64_t runs = (panels + run - 1) / run;
    const int64_t tasks = runs * ((rows + tile_rows - 1) / tile_rows);
    Team::instance().read_ahead(w + panels * groups * Format::kBytes, kReadAhead);  // weights lie in the order of their use
    parallel_for(tasks, 1, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / runs * tile_rows, panel = i % runs * run;
        tile(row, std::min(row + tile_rows, rows), panel, std::min(panel + run, panels));
      }
    });
  }
};

template <class Format>
void check_weight(const Tensor& w, int64_t groups) {
  check_contiguous(w, ScalarType::Byte, 3, "w");
  STD_TORCH_CHECK(w.size(1) == groups && w.size(2) == Format::kBytes, "w is not packed for ", groups, " groups");
}

template <class Format>
Tensor linear(Tensor x, Tensor w, std::optional<Tensor> bias, std::optional<Tensor> residual, int64_t out_features,
              double multiplier) {
  check_contiguous(x, ScalarType::Byte, 3, "x");
  STD_TORCH_CHECK(x.size(2) == kActivationBytes, "x must be what quantize gives");
  const int64_t rows = x.size(0), groups = x.size(1), panels = (out_features + kPanel - 1) / kPanel;
  check_weight<Format>(w, groups);
  STD_TORCH_CHECK(out_features > 0 && w.size(0) == panels, "w has ", w.size(0), " panels, not ", panels);
  const Epilogue epilogue(bias, multiplier, residual, rows, out_features);
  Tensor out = empty_floats({rows, out_features});
  QuantizedLinear<Format>{data<ActivationGroup>(x), data<uint8_t>(w), epilogue, static_cast<float*>(out.data_ptr()), rows, out_features, panels,
                          groups}
      .run();
  return out;
}

template <class Format>
Tensor embedding(Tensor tokens, Tensor w, int64_t dim, double multiplier) {
  check_contiguous(tokens, ScalarType::Int, 1, "tokens");
  check_weight<Format>(w, groups_of(dim));
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
        to[t * dim + k] = value * float(multiplier);
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

ENGINE_C_LINEAR(q8_0, engine::linear<engine::Q8_0>, engine::embedding<engine::Q8_0>)
ENGINE_C_LINEAR(q4_0, engine::linear<engine::Q4_0>, engine::embedding<engine::Q4_0>)
ENGINE_C_LINEAR(q4_1, engine::linear<engine::Q4_1>, engine::embedding<engine::Q4_1>)

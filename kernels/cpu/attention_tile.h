// Softmax attention of a few query rows over one tile of positions: the arithmetic, and nothing else.
//
// A tile's own result has weights relative to the tile's largest score; tiles are merged in the
// order of their positions. So a row's result depends on the row and on where tiles begin, and on
// nothing that is computed beside it or on how tiles are shared out.
#pragma once

#include <algorithm>
#include <cfloat>

#include "attention_cache.h"
#include "exp.h"
#include "soft_cap.h"

namespace engine {

#if defined(ENGINE_AVX512)
constexpr int kAttentionAccumulators = 24;
#else
constexpr int kAttentionAccumulators = 12;
#endif
constexpr int kRowBlock = 6;             // query rows that share each load of a key or value
constexpr int64_t kTilePositions = 128;  // at least, and whole blocks
constexpr int64_t kLargestBlock = 512;
constexpr int64_t kPanelsPerTile = kLargestBlock / kPanel;
constexpr int kStatistics = kLanes < kRowBlock ? 2 * kLanes : kLanes;  // whole vectors with a number for each row of a block

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Range {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
  bool operator==(const Range&) const = default;
};
inline Range intersect(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

// Panels of 16 outputs that `rows` rows can take at once.
constexpr int panels_for(int rows) {
  const int fit = kAttentionAccumulators / (rows * kHalves);
  return fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
}

ENGINE_INLINE Vf largest_of(Vf a, Vf b) {
#if defined(ENGINE_AVX512)
  return _mm512_max_ps(a, b);
#elif defined(ENGINE_AVX2)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

ENGINE_INLINE float largest_lane(Vf value) {
#if defined(ENGINE_AVX512) || defined(ENGINE_AVX2)
#if defined(ENGINE_AVX512)
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps(value, 1));
#else
  const __m256 half = value;
#endif
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
#else
  float most = value[0];
  for (int lane = 1; lane < kLanes; ++lane) most = std::max(most, value[lane]);
  return most;
#endif
}

// x where index + lane is in `seen`, else -infinity.
ENGINE_INLINE Vf keep(Vf x, int64_t index, Range seen) {
  Vi lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
  const Vi outside = (lanes < splat(int32_t(seen.begin - index))) | (lanes >= splat(int32_t(seen.end - index)));
  return outside ? splat(-INFINITY) : x;
}

// Online softmax of a row block over some positions. Of each row: m, the largest score; acc, the sum
// of 2^(score - m) * value; l, the sum of 2^(score - m), still in lanes.
struct Softmax {
  float* m;    // [kStatistics]
  float* acc;  // [kRowBlock, width]: acc [padded_dim], then l [kLanes]

  static int64_t width(int64_t padded_dim) { return padded_dim + kLanes; }
  static int64_t floats(int64_t padded_dim) { return kStatistics + kRowBlock * width(padded_dim); }
  static Softmax in(float* memory) { return {memory, memory + kStatistics}; }
  void clear(int64_t padded_dim) const {
    std::fill_n(m, kStatistics, -FLT_MAX);
    std::fill_n(acc, kRowBlock * width(padded_dim), 0.0f);
  }

  // What acc and l so far and those of the next positions are multiplied with before they are added.
  struct Factors {
    alignas(64) float before[kStatistics], next[kStatistics];
  };
  // Raises m to the largest scores of the positions that come next.
  Factors raise(const float* next) const {
    Factors factors;
    for (int i = 0; i < kStatistics; i += kLanes) {
      const Vf before = load(m + i), after = largest_of(before, load(next + i));
      store(factors.before + i, exp2_nonpositive(before - after));
      store(factors.next + i, exp2_nonpositive(load(next + i) - after));
      store(m + i, after);
    }
    return factors;
  }
  // Adds the positions that come next. A row that saw nothing there stays as it is.
  void merge(const Softmax& next, int64_t count, int64_t padded_dim) const {
    const Factors factors = raise(next.m);
    for (int64_t row = 0; row < count; ++row) {
      float* to = acc + row * width(padded_dim);
      const float* from = next.acc + row * width(padded_dim);
      for (int64_t d = 0; d < width(padded_dim); d += kLanes)
        store(to + d, fma(load(to + d), splat(factors.before[row]), load(from + d) * factors.next[row]));
    }
  }
};

// Where a tile's keys and values are.
template <class Element>
struct Tile {
  const Element* keys[kPanelsPerTile];        // of every 16 positions, [head_dim, block_size] or pairs
  const Element* key_scales[kPanelsPerTile];  // of every 16 positions, float32
  const Element* value_scales[kPanelsPerTile];
  const Element* blocks[kPanelsPerTile];  // values of every block
};

// Values as they are multiplied: the cache's elements, or copies of them.
template <class Value>
struct Values {
  const Value* const* blocks;
  const Value* const* next;  // blocks to fetch meanwhile
  int64_t stride;            // from one position, or pair of positions, to the next
  int64_t panel_stride;      // from one panel to the next
};

template <class Element>
struct TileAttention {
  BlockLayout<Element> layout;
  int64_t tile;        // positions in a tile
  int64_t padded_dim;  // floats of a row of values: whole panels
  SoftCap soft_cap;

  using Factor = Multiplier<Element>;
  static constexpr int kStep = kTogether<Element>;
  // Weights replace the scores they are made of, and may take less memory than those.
  static constexpr int64_t kWeightsPerScore = int64_t(sizeof(float) / sizeof(Factor));
  static Factor* weights_of(float* scores) { return reinterpret_cast<Factor*>(scores); }

  // Panels whose elements of one row share a line of the memory caches.
  template <class T>
  static constexpr int kPanelsPerLine = sizeof(T) * kTogether<T> < 4 ? 2 : 1;

  template <int Rows, int Panels>
  ENGINE_INLINE void score_panels(const Tile<Element>& from, const Tile<Element>& next, int64_t panel, const Factor* queries, float* scores) const {
    constexpr int kVectors = Panels * kHalves;
    const int64_t dim = layout.head_dim, stride = layout.block_size;
    const Element *keys[Panels], *next_keys[Panels];
#pragma GCC unroll 4
    for (int p = 0; p < Panels; ++p) keys[p] = from.keys[panel + p], next_keys[p] = next.keys[panel + p];
    Vf sum[Rows][kVectors] = {};
    for (int64_t d = 0; d < dim; d += kStep) {
#pragma GCC unroll 4
      for (int p = 0; p < Panels; p += kPanelsPerLine<Element>) __builtin_prefetch(next_keys[p] + d * stride);
      add_products<Rows, kVectors>([&](int r) { return queries + r * dim + d; },
                                   [&](int v) { return multiplicands(keys[v / kHalves] + d * stride + v % kHalves * kLanes * kStep); }, sum);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Vf scale;
      if constexpr (kScaled<Element>) scale = load_vector<Vf>(from.key_scales[panel + v / kHalves] + v % kHalves * int64_t(sizeof(Vf)));
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) store(scores + r * tile + panel * kPanel + v * kLanes, kScaled<Element> ? sum[r][v] * scale : sum[r][v]);
    }
  }

  // Scores of the rows for all panels that reach into `seen`.
  template <int Rows>
  __attribute__((noinline)) void score(const Tile<Element>& from, const Tile<Element>& next, Range seen, const Factor* queries, float* scores) const {
    constexpr int kPanels = panels_for(Rows);
    const int64_t end = ceil_div(seen.end, kPanel);
    int64_t panel = seen.begin / kPanel;
    for (; panel + kPanels <= end; panel += kPanels) score_panels<Rows, kPanels>(from, next, panel, queries, scores);
    if constexpr (kPanels > 2)
      for (; panel + 2 <= end; panel += 2) score_panels<Rows, 2>(from, next, panel, queries, scores);
    if constexpr (kPanels > 1)
      for (; panel < end; ++panel) score_panels<Rows, 1>(from, next, panel, queries, scores);
  }

  // Caps what `score` has made of `seen`, if there is a cap.
  void cap_scores(Range seen, int64_t rows, float* scores) const {
    if (!soft_cap.caps()) return;
    const int64_t begin = seen.begin / kPanel * kPanel, end = ceil_div(seen.end, kPanel) * kPanel;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = begin; i < end; i += kLanes) store(scores + row * tile + i, soft_cap(load(scores + row * tile + i)));
  }

  // Turns the scores in the vectors from begin to end of one row into weights; returns their sum
  // in lanes. What multiplies the quants of a value is the weight times the value's scale.
  ENGINE_INLINE Vf weigh(const Tile<Element>& from, int64_t begin, int64_t end, float m, float* scores) const {
    Factor* const weights = weights_of(scores);
    Vf sum{};
#pragma GCC unroll 4
    for (int64_t i = begin; i < end; i += kLanes) {
      const Vf weight = exp2_nonpositive(load(scores + i) - splat(m));
      sum += weight;
      if constexpr (kScaled<Element>)
        store(weights + i, weight * load_vector<Vf>(from.value_scales[i / kPanel] + i % kPanel * int64_t(sizeof(float))));
      else
        store_multipliers<Element>(weights + i, weight);
    }
    return sum;
  }

  // Weights of rows that see the whole tile, which is joined to `running` but for the values.
  template <int Rows>
  ENGINE_INLINE Softmax::Factors weigh_all(const Tile<Element>& from, float* scores, const Softmax& running) const {
    Vf largest[Rows];
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) largest[r] = load(scores + r * tile);
    for (int64_t i = kLanes; i < tile; i += kLanes)
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) largest[r] = largest_of(load(scores + r * tile + i), largest[r]);
    alignas(64) float m[kStatistics] = {};
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) m[r] = largest_lane(largest[r]);
    const Softmax::Factors factors = running.raise(m);
    for (int r = 0; r < Rows; ++r) {
      const Vf l = weigh(from, 0, tile, m[r], scores + r * tile);
      float* to = running.acc + r * Softmax::width(padded_dim) + padded_dim;
      store(to, fma(load(to), splat(factors.before[r]), l * factors.next[r]));
    }
    return factors;
  }

  void weigh_seen(const Tile<Element>& from, Range seen, int64_t row, float* scores, const Softmax& to) const {
    const int64_t begin = seen.begin / kLanes * kLanes, end = ceil_div(seen.end, kLanes) * kLanes;
    Vf largest = splat(-FLT_MAX);
    for (int64_t i = begin; i < end; i += kLanes) {
      store(scores + i, keep(load(scores + i), i, seen));
      largest = largest_of(load(scores + i), largest);
    }
    to.m[row] = largest_lane(largest);
    store(to.acc + row * Softmax::width(padded_dim) + padded_dim, weigh(from, begin, end, to.m[row], scores));
  }

  // to = to + weights x values; or, with factors, their merge with what the rows have.
  template <int Rows, int Panels, class Value>
  ENGINE_INLINE void weighted_panels(const Values<Value>& values, Range seen, int64_t panel, const Factor* weights, const Softmax::Factors* factors, float* to) const {
    constexpr int kVectors = Panels * kHalves;
    const int64_t width = Softmax::width(padded_dim), size = layout.block_size;
    Vf sum[Rows][kVectors] = {};
    if (factors == nullptr)
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[r][v] = load(to + r * width + v * kLanes);
    for (int64_t block = seen.begin / size; block * size < seen.end; ++block) {
      const int64_t begin = std::max(seen.begin - block * size, int64_t{0}), end = std::min(seen.end - block * size, size);
      const Value *rows = values.blocks[block] + panel * values.panel_stride, *next = values.next[block] + panel * values.panel_stride;
      const Factor* weight_at = weights + block * size;
      auto add = [&](int64_t j, auto seen_of) {
#pragma GCC unroll 4
        for (int p = 0; p < Panels; p += kPanelsPerLine<Value>) __builtin_prefetch(next + j / kStep * values.stride + p * values.panel_stride);
        add_products<Rows, kVectors>([&](int r) { return weight_at + r * tile * kWeightsPerScore + j; },
                                     [&](int v) { return seen_of(multiplicands(rows + j / kStep * values.stride + v / kHalves * values.panel_stride + v % kHalves * kLanes * kStep)); }, sum);
      };
      each_step(begin, end, add);
    }
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        float* at = to + r * width + v * kLanes;
        store(at, factors == nullptr ? sum[r][v] : fma(load(at), splat(factors->before[r]), sum[r][v] * factors->next[r]));
      }
  }

  // Calls add(position, what of its values is seen) for the positions from begin to end, or for the
  // pairs in which they lie. The other one of a pair has a weight of zero, but its value may be NaN.
  template <class Add>
  ENGINE_INLINE static void each_step(int64_t begin, int64_t end, const Add& add) {
    auto all = [](auto values) { return values; };
    if constexpr (kStep == 2) {
      if (begin % 2 != 0) add(begin - 1, [](Vi pairs) { return pairs & splat(int32_t(0xffff0000)); }), ++begin;
      for (; begin + 2 <= end; begin += 2) add(begin, all);
      if (begin < end) add(begin, [](Vi pairs) { return pairs & splat(0xffff); });
    } else {
      for (; begin < end; ++begin) add(begin, all);
    }
  }

  // weights x values of positions that all of the rows see.
  template <int Rows, class Value>
  __attribute__((noinline)) void add_weighted(const Values<Value>& values, Range seen, const Factor* weights, const Softmax::Factors* factors, float* to) const {
    constexpr int kPanels = panels_for(Rows);
    const int64_t panels = padded_dim / kPanel;
    int64_t panel = 0;
    for (; panel + kPanels <= panels; panel += kPanels)
      weighted_panels<Rows, kPanels>(values, seen, panel, weights, factors, to + panel * kPanel);
    if constexpr (kPanels > 2)
      for (; panel + 2 <= panels; panel += 2) weighted_panels<Rows, 2>(values, seen, panel, weights, factors, to + panel * kPanel);
    if constexpr (kPanels > 1)
      for (; panel < panels; ++panel) weighted_panels<Rows, 1>(values, seen, panel, weights, factors, to + panel * kPanel);
  }

  // Calls body.template operator()<Rows>() for a row count known at run time.
  template <class Body>
  ENGINE_INLINE static void with_rows(int64_t rows, const Body& body) {
    switch (rows) {
      case 1: return body.template operator()<1>();
      case 2: return body.template operator()<2>();
      case 3: return body.template operator()<3>();
      case 4: return body.template operator()<4>();
      case 5: return body.template operator()<5>();
      default: return body.template operator()<6>();
    }
  }

  // Adds weights x values where rows see different positions: first what only the earlier rows
  // still see, then what all see, then what only the later rows see yet. In order for each row,
  // and nobody multiplies a value that it does not see, which may be NaN.
  template <class Value>
  void add_seen(const Values<Value>& values, const Range* seen, int64_t rows, const Factor* weights, float* to) const {
    Range common = seen[0];
    for (int64_t r = 1; r < rows; ++r) common = intersect(common, seen[r]);
    common = {ceil_div(common.begin, kStep) * kStep, common.end / kStep * kStep};  // a pair is added whole or not, whatever rows are beside
    auto add = [&](int64_t row, int64_t count, Range positions) {
      if (positions.empty()) return;
      with_rows(count, [&]<int Rows>() {
        add_weighted<Rows>(values, positions, weights + row * tile * kWeightsPerScore, nullptr, to + row * Softmax::width(padded_dim));
      });
    };
    auto each_group = [&](auto positions_of) {
      for (int64_t first = 0, last; first < rows; first = last) {
        for (last = first + 1; last < rows && seen[last] == seen[first];) ++last;
        add(first, last - first, positions_of(seen[first]));
      }
    };
    if (common.empty()) return each_group([](Range own) { return own; });
    each_group([&](Range own) { return Range{own.begin, common.begin}; });
    add(0, rows, common);
    each_group([&](Range own) { return Range{common.end, own.end}; });
  }

  // Joins a tile that all rows see whole to `running`. scores: [kRowBlock, tile] of scratch.
  template <class Value>
  void attend_whole(const Tile<Element>& from, const Tile<Element>& next, const Values<Value>& values, const Factor* queries, int64_t rows,
                    float* scores, const Softmax& running) const {
    with_rows(rows, [&]<int Rows>() {
      score<Rows>(from, next, {0, tile}, queries, scores);
      cap_scores({0, tile}, Rows, scores);
      const Softmax::Factors factors = weigh_all<Rows>(from, scores, running);
      add_weighted<Rows>(values, {0, tile}, weights_of(scores), &factors, running.acc);
    });
  }

  // Joins what each row sees of a tile, counted from the tile's begin, to `running`.
  template <class Value>
  void attend_seen(const Tile<Element>& from, const Tile<Element>& next, const Values<Value>& values, const Factor* queries, int64_t rows,
                   const Range* seen, float* scores, const Softmax& scratch, const Softmax& running) const {
    Range any = seen[0];
    for (int64_t r = 1; r < rows; ++r) any = {std::min(any.begin, seen[r].begin), std::max(any.end, seen[r].end)};
    if (any.empty()) return;
    scratch.clear(padded_dim);
    with_rows(rows, [&]<int Rows>() { score<Rows>(from, next, any, queries, scores); });
    cap_scores(any, rows, scores);
    for (int64_t row = 0; row < rows; ++row)
      if (!seen[row].empty()) weigh_seen(from, seen[row], row, scores + row * tile, scratch);
    add_seen(values, seen, rows, weights_of(scores), scratch.acc);
    running.merge(scratch, rows, padded_dim);
  }
};

}  // namespace engine

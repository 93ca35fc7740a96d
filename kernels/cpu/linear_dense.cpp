// linear_dense and embedding_dense: weights [N/16, K, 16] stored as float32, float16 or
// bfloat16, computed in float32. The products of a leaf of sum_tree.h are added by fused multiply-adds.

#include <algorithm>

#include "gemm.h"
#include "c_linear.h"
#include "sum_tree.h"

namespace engine {
namespace {

constexpr int64_t kTileRows = 64;
constexpr int64_t kTilePanels = 4;
constexpr int64_t kTileColumns = kTilePanels * kPanel;
constexpr int64_t kTileDepth = 256;  // a slice of two float32 panels stays in the first cache level

template <class Weight>
struct DenseLinear {
  const float* x;
  int64_t x_stride;
  const Weight* w;
  Epilogue epilogue;
  float* out;
  int64_t rows, in_features, out_features, panels;

  void tile(int64_t row, int64_t panel) const {
    alignas(64) float sums[kLevels + 1][kTileRows * kTileColumns];  // by level of the tree: the whole is the last
    const int64_t tile_rows = std::min(kTileRows, rows - row);
    const int64_t tile_panels = std::min(kTilePanels, panels - panel);
    const int64_t groups = (in_features + kGroup - 1) / kGroup;
    for (int leaf = 0; leaf < kLeaves; ++leaf) {
      const int64_t begin = leaf_begin(groups, leaf) * kGroup, end = std::min(leaf_begin(groups, leaf + 1) * kGroup, in_features);
      const int met = sums_met(leaf);
      int64_t k = begin;
      do {
        const int64_t depth = std::min(kTileDepth, end - k);
        const Product<Weight> product{.a = x + row * x_stride + k,
                                      .a_stride = x_stride,
                                      .w = w + (panel * in_features + k) * kPanel,
                                      .w_stride = kPanel,
                                      .panel_stride = in_features * kPanel,
                                      .depth = depth,
                                      .c = sums[met],
                                      .c_stride = kTileColumns,
                                      .begins = k == begin,
                                      .met = k + depth == end ? met : 0,
                                      .level_stride = kTileRows * kTileColumns};
        product.run(tile_rows, tile_panels);
        k += depth;
      } while (k < end);
    }
    const int64_t column = panel * kPanel;
    const int64_t columns = std::min(tile_panels * kPanel, out_features - column);
    for (int64_t r = 0; r < tile_rows; ++r) {
      float* to = out + (row + r) * out_features + column;
      const float* sum = sums[kLevels] + r * kTileColumns;
      int64_t n = 0;
      for (; n + kLanes <= columns; n += kLanes) store(to + n, epilogue.apply(load(sum + n), row + r, column + n));
      for (; n < columns; ++n) to[n] = epilogue.apply_one(sum[n], row + r, column + n);
    }
  }

  void run() const {
    const int64_t columns = (panels + kTilePanels - 1) / kTilePanels;
    const int64_t tiles = columns * ((rows + kTileRows - 1) / kTileRows);
    parallel_for(tiles, 1, threads_for(rows * in_features * out_features), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) tile(i / columns * kTileRows, i % columns * kTilePanels);
    });
  }
};

template <class Weight>
void gather(const int32_t* tokens, int64_t count, const Weight* w, int64_t dim, float multiplier, float* out) {
  parallel_for(count, 1, threads_for(count * dim), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const Weight* from = w + tokens[t] / kPanel * dim * kPanel + tokens[t] % kPanel;
      for (int64_t k = 0; k < dim; ++k) out[t * dim + k] = to_float(from[k * kPanel]) * multiplier;
    }
  });
}

// Calls `use` with the weight's data as its own type.
template <class Use>
void with_weight_type(const Tensor& w, Use use) {
  switch (w.scalar_type()) {
    case ScalarType::Float: return use(data<float>(w));
    case ScalarType::Half: return use(data<Half>(w));
    case ScalarType::BFloat16: return use(data<BFloat16>(w));
    default: STD_TORCH_CHECK(false, "dense weights are float32, float16 or bfloat16");
  }
}

void check_weight(const Tensor& w, int64_t in_features) {
  check_contiguous(w, w.scalar_type(), 3, "w");
  STD_TORCH_CHECK(w.size(1) == in_features && w.size(2) == kPanel, "w is not packed for ", in_features, " input features");
}

Tensor linear_dense(Tensor x, Tensor w, std::optional<Tensor> bias, std::optional<Tensor> residual, int64_t out_features,
                    double multiplier) {
  check_rows(x, ScalarType::Float, 2, "x");
  const int64_t rows = x.size(0), in_features = x.size(1), panels = (out_features + kPanel - 1) / kPanel;
  check_weight(w, in_features);
  STD_TORCH_CHECK(out_features > 0 && w.size(0) == panels, "w has ", w.size(0), " panels, not ", panels);
  const Epilogue epilogue(bias, multiplier, residual, rows, out_features);
  Tensor out = empty_floats({rows, out_features});
  with_weight_type(w, [&]<class Weight>(const Weight* weight) {
    DenseLinear<Weight>{data<float>(x), row_stride(x), weight, epilogue, static_cast<float*>(out.data_ptr()), rows, in_features, out_features,
                        panels}
        .run();
  });
  return out;
}

Tensor embedding_dense(Tensor tokens, Tensor w, int64_t dim, double multiplier) {
  check_contiguous(tokens, ScalarType::Int, 1, "tokens");
  check_weight(w, dim);
  const int64_t count = tokens.size(0);
  const int32_t* token = data<int32_t>(tokens);
  for (int64_t t = 0; t < count; ++t)
    STD_TORCH_CHECK(token[t] >= 0 && token[t] < w.size(0) * kPanel, "token ", token[t], " is outside the vocabulary");
  Tensor out = empty_floats({count, dim});
  with_weight_type(w, [&](const auto* weight) { gather(token, count, weight, dim, float(multiplier), static_cast<float*>(out.data_ptr())); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) {
  m.impl("linear_dense", TORCH_BOX(&linear_dense));
  m.impl("embedding_dense", TORCH_BOX(&embedding_dense));
}

}  // namespace engine

ENGINE_C_LINEAR(dense, engine::linear_dense, engine::embedding_dense)

// Linears and embeddings of weights that are numbers, and experts_dense and experts_bf16: linears of many matrices, one for each expert,
// whose rows lie together. The products of a leaf of sum_tree.h are added by fused multiply-adds.
//   _dense  weights [N/16, K, 16] float32 or float16, activations [T, K] float32
//   _bf16   weights [N/16, K/2, 16, 2] and activations [T, K] bfloat16, K even: what round_bf16 gives. Products are those
//           of products.h; numbers and sums below 2^-126 are zero, as vpdpbf16ps has it.

#include <algorithm>

#include "c_linear.h"
#include "flush_denormals.h"
#include "gemm.h"
#include "moe.h"
#include "sum_tree.h"

namespace engine {
namespace {

constexpr int64_t kTileRows = 64;
constexpr int64_t kTilePanels = 4;
constexpr int64_t kTileColumns = kTilePanels * kPanel;
constexpr int64_t kTileDepth = 256;  // a slice of two float32 panels stays in the first cache level

template <class Weight>
struct DenseLinear {
  using Activation = typename Product<Weight>::Activation;

  const Activation* x;
  int64_t x_stride;
  const Weight* w;
  Epilogue epilogue;
  float* out;
  int64_t rows, in_features, out_features, panels;

  // By level of the tree: the whole is the last.
  using Sums = float[kLevels + 1][kTileRows * kTileColumns];

  void tile(int64_t row, int64_t panel) const {
    alignas(64) Sums sums;
    const int64_t tile_rows = std::min(kTileRows, rows - row);
    const int64_t tile_panels = std::min(kTilePanels, panels - panel);
    multiply(row, panel, tile_rows, tile_panels, sums);
    finish(row, panel, tile_rows, tile_panels, sums[kLevels]);
  }

  void multiply(int64_t row, int64_t panel, int64_t tile_rows, int64_t tile_panels, Sums& sums) const {
    const FlushDenormals flush(kTogether<Weight> == 2);
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
  }

  void finish(int64_t row, int64_t panel, int64_t tile_rows, int64_t tile_panels, const float* sums) const {
    const int64_t column = panel * kPanel;
    const int64_t columns = std::min(tile_panels * kPanel, out_features - column);
    for (int64_t r = 0; r < tile_rows; ++r) {
      float* to = out + (row + r) * out_features + column;
      const float* sum = sums + r * kTileColumns;
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
  constexpr int64_t kStep = kTogether<Weight>;
  const int64_t panel_elements = (dim + kStep - 1) / kStep * kStep * kPanel;
  parallel_for(count, 1, threads_for(count * dim), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const Weight* from = w + tokens[t] / kPanel * panel_elements + tokens[t] % kPanel * kStep;
      for (int64_t k = 0; k < dim; ++k) out[t * dim + k] = to_float(from[k / kStep * kStep * kPanel + k % kStep]) * multiplier;
    }
  });
}

// Calls `use` with the weight's data as its own type.
template <class Use>
void with_weight_type(const Tensor& w, Use use) {
  switch (w.scalar_type()) {
    case ScalarType::Float: return use(data<float>(w));
    case ScalarType::Half: return use(data<Half>(w));
    default: STD_TORCH_CHECK(false, "dense weights are float32 or float16");
  }
}

void check_dense(const Tensor& w, int64_t in_features) {
  check_contiguous(w, w.scalar_type(), 3, "w");
  STD_TORCH_CHECK(w.size(1) == in_features && w.size(2) == kPanel, "w is not packed for ", in_features, " input features");
}

void check_bf16(const Tensor& w, int64_t in_features) {
  check_contiguous(w, ScalarType::BFloat16, 4, "w");
  STD_TORCH_CHECK(w.size(1) == (in_features + 1) / 2 && w.size(2) == kPanel && w.size(3) == 2, "w is not packed for ", in_features, " input features");
}

template <class Weight>
void multiply(const Tensor& x, const Weight* w, const Epilogue& epilogue, const Tensor& out) {
  const int64_t out_features = out.size(1), panels = (out_features + kPanel - 1) / kPanel;
  DenseLinear<Weight>{data<typename Product<Weight>::Activation>(x), row_stride(x), w, epilogue, static_cast<float*>(out.data_ptr()), x.size(0),
                      x.size(1), out_features, panels}
      .run();
}

void check_panels(const Tensor& w, int64_t out_features) {
  const int64_t panels = (out_features + kPanel - 1) / kPanel;
  STD_TORCH_CHECK(out_features > 0 && w.size(0) == panels, "w has ", w.size(0), " panels, not ", panels);
}

Tensor linear_dense(Tensor x, Tensor w, std::optional<Tensor> bias, std::optional<Tensor> residual, int64_t out_features,
                    double multiplier) {
  check_rows(x, ScalarType::Float, 2, "x");
  check_dense(w, x.size(1));
  check_panels(w, out_features);
  const Epilogue epilogue(bias, multiplier, residual, x.size(0), out_features);
  Tensor out = empty_floats({x.size(0), out_features});
  with_weight_type(w, [&](const auto* weight) { multiply(x, weight, epilogue, out); });
  return out;
}

Tensor linear_bf16(Tensor x, Tensor w, std::optional<Tensor> bias, std::optional<Tensor> residual, int64_t out_features, double multiplier) {
  check_rows(x, ScalarType::BFloat16, 2, "x");
  STD_TORCH_CHECK(x.size(1) % 2 == 0, "x must be what round_bf16 gives");
  check_bf16(w, x.size(1));
  check_panels(w, out_features);
  const Epilogue epilogue(bias, multiplier, residual, x.size(0), out_features);
  Tensor out = empty_floats({x.size(0), out_features});
  multiply(x, data<BFloat16>(w), epilogue, out);
  return out;
}

// Each expert's rows with its own panels of w.
template <class Weight>
Tensor each_expert(const Tensor& x, const Weight* w, const std::optional<Tensor>& bias, const Tensor& order, int64_t out_features, int64_t experts) {
  const int64_t rows = x.size(0), in_features = x.size(1), panels = out_features / kPanel;
  const int32_t* begin = begins_of(order, experts, rows);
  const Epilogue epilogue(bias, 1.0, std::nullopt, rows, experts * out_features);
  Tensor out = empty_floats({rows, out_features});
  for (int64_t e = 0; e < experts; ++e)
    if (const int64_t count = begin[e + 1] - begin[e]; count > 0)
      DenseLinear<Weight>{data<typename Product<Weight>::Activation>(x) + begin[e] * row_stride(x), row_stride(x), w + e * panels * in_features * kPanel,
                          epilogue.from(e * out_features), static_cast<float*>(out.data_ptr()) + begin[e] * out_features, count, in_features,
                          out_features, panels}
          .run();
  return out;
}

void check_experts(const Tensor& w, int64_t out_features, int64_t experts) {
  STD_TORCH_CHECK(out_features % kPanel == 0, "experts must have whole panels, not ", out_features, " outputs");
  check_panels(w, experts * out_features);
}

Tensor experts_dense(Tensor x, Tensor w, std::optional<Tensor> bias, Tensor order, int64_t out_features, int64_t experts) {
  check_rows(x, ScalarType::Float, 2, "x");
  check_dense(w, x.size(1));
  check_experts(w, out_features, experts);
  std::optional<Tensor> out;
  with_weight_type(w, [&](const auto* weight) { out = each_expert(x, weight, bias, order, out_features, experts); });
  return *out;
}

Tensor experts_bf16(Tensor x, Tensor w, std::optional<Tensor> bias, Tensor order, int64_t out_features, int64_t experts) {
  check_rows(x, ScalarType::BFloat16, 2, "x");
  STD_TORCH_CHECK(x.size(1) % 2 == 0, "x must be what round_bf16 gives");
  check_bf16(w, x.size(1));
  check_experts(w, out_features, experts);
  return each_expert(x, data<BFloat16>(w), bias, order, out_features, experts);
}

const int32_t* checked_tokens(const Tensor& tokens, const Tensor& w) {
  check_contiguous(tokens, ScalarType::Int, 1, "tokens");
  const int32_t* token = data<int32_t>(tokens);
  for (int64_t t = 0; t < tokens.size(0); ++t)
    STD_TORCH_CHECK(token[t] >= 0 && token[t] < w.size(0) * kPanel, "token ", token[t], " is outside the vocabulary");
  return token;
}

Tensor embedding_dense(Tensor tokens, Tensor w, int64_t dim, double multiplier) {
  check_dense(w, dim);
  const int32_t* token = checked_tokens(tokens, w);
  Tensor out = empty_floats({tokens.size(0), dim});
  with_weight_type(w, [&](const auto* weight) { gather(token, tokens.size(0), weight, dim, float(multiplier), static_cast<float*>(out.data_ptr())); });
  return out;
}

Tensor embedding_bf16(Tensor tokens, Tensor w, int64_t dim, double multiplier) {
  check_bf16(w, dim);
  const int32_t* token = checked_tokens(tokens, w);
  Tensor out = empty_floats({tokens.size(0), dim});
  gather(token, tokens.size(0), data<BFloat16>(w), dim, float(multiplier), static_cast<float*>(out.data_ptr()));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(engine, CPU, m) {
  m.impl("linear_dense", TORCH_BOX(&linear_dense));
  m.impl("embedding_dense", TORCH_BOX(&embedding_dense));
  m.impl("linear_bf16", TORCH_BOX(&linear_bf16));
  m.impl("embedding_bf16", TORCH_BOX(&embedding_bf16));
  m.impl("experts_dense", TORCH_BOX(&experts_dense));
  m.impl("experts_bf16", TORCH_BOX(&experts_bf16));
}

}  // namespace engine

ENGINE_C_LINEAR(dense, engine::linear_dense, engine::embedding_dense)
ENGINE_C_LINEAR(bf16, engine::linear_bf16, engine::embedding_bf16)

#define ENGINE_C_EXPERTS(kernel)                                                                                                              \
  ENGINE_EXPORT aoti_torch_cpu_experts_##kernel(AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias, AtenTensorHandle order,       \
                                                int64_t out_features, int64_t experts, AtenTensorHandle* result) {                            \
    return engine::return_to_c(result, [&] {                                                                                                  \
      return engine::experts_##kernel(engine::borrow(x), engine::borrow(w), engine::borrow_optional(bias), engine::borrow(order), out_features, \
                                      experts);                                                                                               \
    });                                                                                                                                       \
  }
ENGINE_C_EXPERTS(dense)
ENGINE_C_EXPERTS(bf16)

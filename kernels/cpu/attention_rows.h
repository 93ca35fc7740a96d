// What becomes of one head's query or key of one token before attention: RMSNorm, rotation, scale.
#pragma once

#include <cmath>

#include "simd.h"

namespace engine {

// In this order, each step rounded to float32:
//   x = weight * (x * (1 / sqrt(mean of squares + eps)))       where there is a norm
//   (a, b) = (a * cos - b * sin, b * cos + a * sin)            where there is a rotation,
//            for every pair (x[i], x[i + head_dim / 2])
//   x = x * factor
struct RowTransform {
  const float* weight;  // [head_dim], or null
  float eps;
  const float *cos, *sin;  // [tokens, head_dim / 2], or null
  float factor;
  int64_t head_dim;

  // from, to: [head_dim]
  void apply(const float* from, int64_t token, float* to) const {
    if (weight != nullptr && cos != nullptr) return transform<true, true>(from, token, to);
    if (weight != nullptr) return transform<true, false>(from, token, to);
    if (cos != nullptr) return transform<false, true>(from, token, to);
    transform<false, false>(from, token, to);
  }

 private:
  // The squares are summed in lanes, then the lanes, then what fills no vector.
  float inverse_root_mean_square(const float* x) const {
    Vf squares{};
    int64_t d = 0;
    for (; d + kLanes <= head_dim; d += kLanes) squares = fma(load(x + d), load(x + d), squares);
    float sum = reduce_add(squares);
    for (; d < head_dim; ++d) sum += x[d] * x[d];
    return 1.0f / std::sqrt(sum / float(head_dim) + eps);
  }

  template <bool Norm, bool Rotate>
  void transform(const float* __restrict from, int64_t token, float* __restrict to) const {
    const float inverse = Norm ? inverse_root_mean_square(from) : 1.0f;
    auto normed = [&](int64_t d) { return Norm ? weight[d] * (from[d] * inverse) : from[d]; };
    const int64_t half = Rotate ? head_dim / 2 : 0;
    for (int64_t i = 0; i < half; ++i) {
      const float a = normed(i), b = normed(half + i), c = cos[token * half + i], s = sin[token * half + i];
      to[i] = (a * c - b * s) * factor;
      to[half + i] = (b * c + a * s) * factor;
    }
    for (int64_t d = 2 * half; d < head_dim; ++d) to[d] = normed(d) * factor;
  }
};

}  // namespace engine

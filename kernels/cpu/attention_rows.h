// What becomes of one head's query or key of one token before attention: RMSNorm, rotation, scale.
#pragma once

#include <cmath>

#include "simd.h"

namespace engine {

// Of the pairs (x[i], x[i + half]) of a head's first 2 * half elements; the others stay.
struct Rotation {
  const float *cos, *sin;  // [tokens, half], or null
  int64_t half;
};

// In this order (norm_after_rope: rotation before norm), each step rounded to float32:
//   x = weight * (x * (1 / sqrt(mean of squares + eps)))       where there is a norm
//   (a, b) = (a * cos - b * sin, b * cos + a * sin)            where there is a rotation, for every pair
//   x = x * factor                                             or factor * token_factors[token]
struct RowTransform {
  const float* weight;  // [head_dim], or null
  float eps;
  bool norm_after_rope;
  Rotation rotation;
  float factor;
  const float* token_factors;  // [tokens], or null
  int64_t head_dim;

  // from, to: [head_dim]
  void apply(const float* from, int64_t token, float* to) const {
    const float by = token_factors == nullptr ? factor : factor * token_factors[token];
    const bool norms = weight != nullptr, rotates = rotation.cos != nullptr;
    if (norms && rotates && norm_after_rope) {
      transform<false, true>(from, token, 1.0f, to);
      normalize(to, by);
    } else if (norms && rotates) {
      transform<true, true>(from, token, by, to);
    } else if (norms) {
      transform<true, false>(from, token, by, to);
    } else if (rotates) {
      transform<false, true>(from, token, by, to);
    } else {
      transform<false, false>(from, token, by, to);
    }
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

  void normalize(float* x, float by) const {
    const float inverse = inverse_root_mean_square(x);
    for (int64_t d = 0; d < head_dim; ++d) x[d] = weight[d] * (x[d] * inverse) * by;
  }

  template <bool Norm, bool Rotate>
  void transform(const float* __restrict from, int64_t token, float by, float* __restrict to) const {
    const float inverse = Norm ? inverse_root_mean_square(from) : 1.0f;
    auto normed = [&](int64_t d) { return Norm ? weight[d] * (from[d] * inverse) : from[d]; };
    const int64_t half = Rotate ? rotation.half : 0;
    for (int64_t i = 0; i < half; ++i) {
      const float a = normed(i), b = normed(half + i), c = rotation.cos[token * half + i], s = rotation.sin[token * half + i];
      to[i] = (a * c - b * s) * by;
      to[half + i] = (b * c + a * s) * by;
    }
    for (int64_t d = 2 * half; d < head_dim; ++d) to[d] = normed(d) * by;
  }
};

}  // namespace engine

// The soft cap of attention scores: cap * tanh(x / cap), which leaves small scores as they are.
#pragma once

#include "simd.h"

namespace engine {

// Relative error below 3e-7, also of the smallest scores; NaN stays NaN.
// tanh(y) = y * p(y^2) / q(y^2) with polynomials of degree 4, whose largest relative error up to
// y = 9 is smallest (2.1e-8 with exact coefficients); from there on tanh is 1 to float32.
class SoftCap {
 public:
  // cap: 0 for none.
  explicit SoftCap(float cap) : limit_(9 * cap), inverse_(cap > 0 ? 1 / cap : 0) {}

  bool caps() const { return limit_ > 0; }

  ENGINE_INLINE Vf operator()(Vf x) const {
    x = clamp(x, -limit_, limit_);
    const Vf y = x * inverse_, square = y * y;
    Vf p = splat(0x1.cadcb6p-27f), q = splat(0x1.a1801cp-21f);
    p = fma(p, square, splat(0x1.59c348p-16f)), q = fma(q, square, splat(0x1.58860ep-12f));
    p = fma(p, square, splat(0x1.ca2c72p-9f)), q = fma(q, square, splat(0x1.a7f7eap-6f));
    p = fma(p, square, splat(0x1.120b1cp-3f)), q = fma(q, square, splat(0x1.de5ad8p-2f));
    p = fma(p, square, splat(1.0f)), q = fma(q, square, splat(1.0f));
    return x * (p / q);
  }

 private:
  float limit_, inverse_;
};

}  // namespace engine

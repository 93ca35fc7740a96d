// e^x for x <= 0, written out so that every part of an operator uses the same one.
#pragma once

#include "simd.h"

namespace engine {

// Within 2 units in the last place; 0 below -87.3 and for -infinity; NaN stays NaN.
// x = n * ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor polynomial of degree 7, whose
// remainder there is below 2^-27.
ENGINE_INLINE Vf exp_nonpositive(Vf x) {
  constexpr float kLowest = -87.3f;
  const Vf clamped = x < kLowest ? splat(kLowest) : x;
  const Vi n = round_to_int(clamped * 1.44269504f);
  const Vf r = fma(to_float(n), splat(2.12194440e-4f), fma(to_float(n), splat(-0.693359375f), clamped));
  Vf sum = splat(1.0f / 5040);
  sum = fma(sum, r, splat(1.0f / 720));
  sum = fma(sum, r, splat(1.0f / 120));
  sum = fma(sum, r, splat(1.0f / 24));
  sum = fma(sum, r, splat(1.0f / 6));
  sum = fma(sum, r, splat(0.5f));
  sum = fma(sum, r, splat(1.0f));
  sum = fma(sum, r, splat(1.0f));
  const Vf result = sum * bit_cast<Vf>((n + 127) << 23);
  return x < kLowest ? Vf{} : result;
}

ENGINE_INLINE float exp_nonpositive(float x) { return exp_nonpositive(splat(x))[0]; }

}  // namespace engine

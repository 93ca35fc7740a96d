// e^x and 2^x for x <= 0, written out so that every part of an operator uses the same one.
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

// Relative error below 1.5e-7 down to 2^-126, then an absolute one below 2^-126; exactly 1 at 0,
// exactly 0 from -127 (AVX-512: -150) on, -infinity included; NaN stays NaN.
// x = n + r with 0 <= r < 1; 2^r by the polynomial of degree 5 with p(0) = 1 whose largest
// relative error on [0, 1] is smallest (8.2e-8 with exact coefficients).
ENGINE_INLINE Vf exp2_nonpositive(Vf x) {
#if defined(ENGINE_AVX512)
  const Vf r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
  x = x < -127.0f ? splat(-127.0f) : x;
#if defined(ENGINE_AVX2)
  const Vf n = _mm256_floor_ps(x);
#else
  Vf n = to_float(__builtin_convertvector(x, Vi));
  n = n > x ? n - 1.0f : n;
#endif
  const Vf r = x - n;
#endif
  Vf power = splat(0x1.e974fcp-10f);
  power = fma(power, r, splat(0x1.277854p-7f));
  power = fma(power, r, splat(0x1.c91ce6p-5f));
  power = fma(power, r, splat(0x1.ebdb56p-3f));
  power = fma(power, r, splat(0x1.62e4bap-1f));
  power = fma(power, r, splat(1.0f));
#if defined(ENGINE_AVX512)
  return _mm512_scalef_ps(power, x);
#elif defined(ENGINE_AVX2)
  return bit_cast<Vf>(bit_cast<Vi>(power) + (bit_cast<Vi>(_mm256_cvtps_epi32(n)) << 23));
#else
  return bit_cast<Vf>(bit_cast<Vi>(power) + (__builtin_convertvector(n, Vi) << 23));
#endif
}

}  // namespace engine

// e^x, and 2^x for x <= 0, written out so that every part of an operator uses the same one.
#pragma once

#include "simd.h"

namespace engine {

// Within 3 units in the last place from -87.3 to 88.3; below as at -87.3, above infinite; NaN stays NaN.
// x = (n + r) * ln 2 with |r| <= 1/2, and 2^r by the polynomial of degree 5 whose largest relative
// error there is smallest (7.5e-8 with exact coefficients).
ENGINE_INLINE Vf exp_clamped(Vf x) {
  x = clamp(x, -87.3f, 89.0f);
  const Vi n = round_to_int(x * 0x1.715476p+0f);
  const Vf r = fma(x, splat(0x1.4ae0cp-26f), fma(x, splat(0x1.715476p+0f), -to_float(n)));
  Vf power = splat(0x1.5c08e6p-10f);
  power = fma(power, r, splat(0x1.3d0c52p-7f));
  power = fma(power, r, splat(0x1.c6b6e4p-5f));
  power = fma(power, r, splat(0x1.ebf918p-3f));
  power = fma(power, r, splat(0x1.62e428p-1f));
  power = fma(power, r, splat(1.0f));
  return power * bit_cast<Vf>((n + 127) << 23);
}

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

// Multiply-adds of floats, and of bfloat16 in pairs: the steps that attention and the dense linears are made of.
//
// The products of a pair are exact in float32. That of the high elements is added first, then that of the low ones,
// each sum rounded: what vpdpbf16ps does, and where it is not there two fused multiply-adds.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "simd.h"

namespace engine {

// Elements that are multiplied and added together: pairs of bfloat16.
template <class Element>
constexpr int kTogether = std::is_same_v<Element, BFloat16> ? 2 : 1;

#if defined(ENGINE_BF16)
constexpr bool kMultipliesPairs = true;
#else
constexpr bool kMultipliesPairs = false;
#endif

// A vector of elements as they are multiplied: floats, or pairs of bfloat16.
ENGINE_INLINE Vf multiplicands(const float* from) { return load(from); }
ENGINE_INLINE Vf multiplicands(const Half* from) { return load(from); }
ENGINE_INLINE Vi multiplicands(const BFloat16* from) { return load_vector<Vi>(from); }
ENGINE_INLINE Vf multiplicands(const int8_t* from) { return to_float(load_lanes(from)); }

ENGINE_INLINE Vf high_of_pairs(Vi pairs) { return bit_cast<Vf>(pairs & splat(int32_t(0xffff0000))); }
ENGINE_INLINE Vf low_of_pairs(Vi pairs) { return bit_cast<Vf>(pairs << 16); }

// What multiplies them in every lane: a float, or a pair, which may have been widened.
ENGINE_INLINE Vf multiplier(const float* from) { return splat(*from); }
ENGINE_INLINE Vi multiplier(const BFloat16* from) {
  int32_t pair;
  std::memcpy(&pair, from, sizeof(pair));
  return splat(pair);
}
ENGINE_INLINE Vf high_multiplier(const float* pair) { return splat(pair[1]); }
ENGINE_INLINE Vf low_multiplier(const float* pair) { return splat(pair[0]); }
ENGINE_INLINE Vf high_multiplier(const BFloat16* pair) { return high_of_pairs(multiplier(pair)); }
ENGINE_INLINE Vf low_multiplier(const BFloat16* pair) { return low_of_pairs(multiplier(pair)); }

// sum + a * b
ENGINE_INLINE Vf add_product(Vf sum, Vf a, Vf b) { return fma(a, b, sum); }
#if defined(ENGINE_BF16)
ENGINE_INLINE Vf add_product(Vf sum, Vi a, Vi b) { return _mm512_dpbf16_ps(sum, bit_cast<__m512bh>(a), bit_cast<__m512bh>(b)); }
#endif

// One load for all the multiplications with it, where the compiler would rather load it for each.
template <class Vector>
ENGINE_INLINE Vector in_register(Vector value) {
#if defined(ENGINE_AVX512)
  asm("" : "+v"(value));
#elif defined(ENGINE_AVX2)
  asm("" : "+x"(value));
#endif
  return value;
}

// sum[r][v] += left(r) * right(v), of floats or of pairs. Keeps the smaller operand set in registers and streams the other.
template <int Rows, int Vectors, class Left, class Right>
ENGINE_INLINE void multiply_add(const Left& left, const Right& right, Vf (&sum)[Rows][Vectors]) {
  using Operand = decltype(left(0));
  Operand held[std::min(Rows, Vectors)];
  if constexpr (Rows < Vectors) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) held[r] = in_register(left(r));
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      const Operand streamed = in_register(right(v));
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) sum[r][v] = add_product(sum[r][v], held[r], streamed);
    }
  } else {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) held[v] = in_register(right(v));
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Operand streamed = in_register(left(r));
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) sum[r][v] = add_product(sum[r][v], streamed, held[v]);
    }
  }
}

// One step of dot products: left(r) points to what multiplies right(v), elements of a type or pairs of them.
template <int Rows, int Vectors, class Left, class Right>
ENGINE_INLINE void add_products(const Left& left, const Right& right, Vf (&sum)[Rows][Vectors]) {
  if constexpr (std::is_same_v<decltype(right(0)), Vi> && !kMultipliesPairs) {
    multiply_add<Rows, Vectors>([&](int r) { return high_multiplier(left(r)); }, [&](int v) { return high_of_pairs(right(v)); }, sum);
    multiply_add<Rows, Vectors>([&](int r) { return low_multiplier(left(r)); }, [&](int v) { return low_of_pairs(right(v)); }, sum);
  } else {
    multiply_add<Rows, Vectors>([&](int r) { return multiplier(left(r)); }, right, sum);
  }
}

}  // namespace engine

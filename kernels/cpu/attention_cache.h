// How keys and values lie in the cache: element types, and the layout of one block of one head.
//
// A block of a head is one run of memory. Keys lie transposed in it, [head_dim, block_size], and
// values plainly, [block_size, head_dim]. int8 elements are quants, value = scale * quant, one
// scale for each key and for each value; the block's float32 scales, [block_size], follow its quants.
#pragma once

#include <cstring>
#include <type_traits>

#include "simd.h"

namespace engine {

template <class Element>
constexpr bool kScaled = std::is_same_v<Element, int8_t>;

// A vector of elements as floats.
ENGINE_INLINE Vf widen(const float* from) { return load(from); }
ENGINE_INLINE Vf widen(const BFloat16* from) {
#if defined(ENGINE_AVX512)
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_vector<__m256i>(from)), 16));
#elif defined(ENGINE_AVX2)
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_vector<__m128i>(from)), 16));
#else
  return load(from);
#endif
}
ENGINE_INLINE Vf widen(const int8_t* from) {
#if defined(ENGINE_AVX512)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_vector<__m128i>(from)));
#elif defined(ENGINE_AVX2)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  typedef int8_t Raw __attribute__((vector_size(kLanes), may_alias));
  return to_float(__builtin_convertvector(load_vector<Raw>(from), Vi));
#endif
}
ENGINE_INLINE float to_float(int8_t value) { return float(value); }

// Elements of one key or value [count], and its scale where the type has one.
inline float encode(const float* __restrict from, int64_t count, float* __restrict to) {
  for (int64_t d = 0; d < count; ++d) to[d] = from[d];
  return 1.0f;
}
inline float encode(const float* __restrict from, int64_t count, BFloat16* __restrict to) {
  for (int64_t d = 0; d < count; ++d) to[d] = to_bfloat16(from[d]);
  return 1.0f;
}
// scale = largest magnitude / 127, quant = value * (127 / largest) to the nearest, ties to even.
// A vector that is all but zero is zero, and one that is not finite gets the scale NaN.
inline float encode(const float* __restrict from, int64_t count, int8_t* __restrict to) {
  constexpr float kSmallestMagnitude = 0x1p-100f;
  constexpr float kRounding = 0x1.8p23f;  // added to a small float, it leaves the nearest integer in the low bits
  int32_t largest_bits = 0;
  for (int64_t d = 0; d < count; ++d) largest_bits = std::max(largest_bits, bit_cast<int32_t>(from[d]) & 0x7fffffff);
  const float largest = bit_cast<float>(largest_bits);
  const bool finite = largest < INFINITY, usable = finite && largest >= kSmallestMagnitude;
  const float inverse = usable ? 127.0f / largest : 0.0f;
  for (int64_t d = 0; d < count; ++d) to[d] = int8_t(bit_cast<int32_t>(from[d] * inverse + kRounding));
  return usable ? largest / 127.0f : finite ? 0.0f : NAN;
}

template <class Element>
struct BlockLayout {
  int64_t block_size, head_dim;

  int64_t elements() const { return block_size * head_dim; }
  int64_t stride() const { return block_size * (head_dim + (kScaled<Element> ? int64_t(sizeof(float)) : 0)); }
  // The block's scales, as floats that may lie unaligned.
  template <class Byte>
  Byte* scales(Byte* block) const {
    return block + elements();
  }

  void write_scale(Element* block, int64_t offset, float scale) const {
    if constexpr (kScaled<Element>) std::memcpy(scales(block) + offset * int64_t(sizeof(float)), &scale, sizeof(float));
  }
  void write_key(Element* block, int64_t offset, const float* key, Element* scratch) const {
    write_scale(block, offset, encode(key, head_dim, scratch));
    for (int64_t d = 0; d < head_dim; ++d) block[d * block_size + offset] = scratch[d];
  }
  void write_value(Element* block, int64_t offset, const float* value) const {
    write_scale(block, offset, encode(value, head_dim, block + offset * head_dim));
  }
};

}  // namespace engine

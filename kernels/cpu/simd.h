// Vectors of the width that the compile flags allow, and the few operations the kernels need.
//
// The choice is made here and in dot.h, at compile time, and nowhere else. The kernels are
// written once over `Vf` and `Vi` with ordinary operators; only what the compiler's vector
// types cannot express (fused multiply-add, rounding, half precision) is spelled per ISA.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define ENGINE_AVX512
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define ENGINE_AVX2
#endif

#if defined(ENGINE_AVX512) && defined(__AVX512BF16__)
#define ENGINE_BF16
#endif

#define ENGINE_INLINE inline __attribute__((always_inline))

namespace engine {

#if defined(ENGINE_AVX512)
constexpr int kLanes = 16;
#elif defined(ENGINE_AVX2)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

constexpr int kPanel = 16;               // output features per weight panel, on every ISA
constexpr int kHalves = kPanel / kLanes;  // vectors per panel

typedef float Vf __attribute__((vector_size(4 * kLanes), may_alias));
typedef int32_t Vi __attribute__((vector_size(4 * kLanes), may_alias));
typedef uint8_t Vb __attribute__((vector_size(4 * kLanes), may_alias));

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class To, class From>
ENGINE_INLINE To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

template <class Vector>
ENGINE_INLINE Vector load_vector(const void* from) {
  Vector value;
  std::memcpy(&value, from, sizeof(Vector));
  return value;
}

template <class Vector>
ENGINE_INLINE void store(void* to, Vector value) {
  std::memcpy(to, &value, sizeof(Vector));
}

ENGINE_INLINE Vf splat(float value) { return value - Vf{}; }
ENGINE_INLINE Vi splat(int32_t value) { return value - Vi{}; }

// The four bytes at `from`, repeated: the activations of four consecutive k for every lane.
ENGINE_INLINE Vb splat_quad(const int8_t* from) {
  int32_t quad;
  std::memcpy(&quad, from, 4);
  return bit_cast<Vb>(splat(quad));
}

ENGINE_INLINE float to_float(float value) { return value; }
ENGINE_INLINE float to_float(BFloat16 value) { return bit_cast<float>(uint32_t{value.bits} << 16); }
ENGINE_INLINE float to_float(Half value) {
#if defined(ENGINE_AVX512) || defined(ENGINE_AVX2)
  return _cvtsh_ss(value.bits);
#else
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff;
  if (magnitude >= 0x7c00) return bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  const float scaled = bit_cast<float>(magnitude << 13) * 0x1p112f;  // also right for subnormals
  return bit_cast<float>(bit_cast<uint32_t>(scaled) | sign);
#endif
}
ENGINE_INLINE Vf to_float(Vi value) { return __builtin_convertvector(value, Vf); }

ENGINE_INLINE Vf load(const float* from) { return load_vector<Vf>(from); }
ENGINE_INLINE Vf load(const Half* from) {
#if defined(ENGINE_AVX512)
  return _mm512_cvtph_ps(load_vector<__m256i>(from));
#elif defined(ENGINE_AVX2)
  return _mm256_cvtph_ps(load_vector<__m128i>(from));
#else
  Vf value;
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = to_float(from[lane]);
  return value;
#endif
}

// kLanes bytes, each in a lane. Spelled out: of vector types a fourth as wide, compilers take single elements.
ENGINE_INLINE Vi load_lanes(const int8_t* from) {
#if defined(ENGINE_AVX512)
  return bit_cast<Vi>(_mm512_cvtepi8_epi32(load_vector<__m128i>(from)));
#elif defined(ENGINE_AVX2)
  return bit_cast<Vi>(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  Vi lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = from[lane];
  return lanes;
#endif
}
ENGINE_INLINE Vi load_lanes(const uint8_t* from) {
#if defined(ENGINE_AVX512)
  return bit_cast<Vi>(_mm512_cvtepu8_epi32(load_vector<__m128i>(from)));
#elif defined(ENGINE_AVX2)
  return bit_cast<Vi>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  Vi lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = from[lane];
  return lanes;
#endif
}
// The other way, of lanes -128..127.
ENGINE_INLINE void store_lanes(int8_t* to, Vi lanes) {
#if defined(ENGINE_AVX512)
  store(to, _mm512_cvtepi32_epi8(bit_cast<__m512i>(lanes)));
#elif defined(ENGINE_AVX2)
  const __m256i all = bit_cast<__m256i>(lanes);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
#else
  for (int lane = 0; lane < kLanes; ++lane) to[lane] = int8_t(lanes[lane]);
#endif
}

// NaN stays NaN.
ENGINE_INLINE Vf clamp(Vf x, float low, float high) {
#if defined(ENGINE_AVX512)
  return _mm512_min_ps(splat(high), _mm512_max_ps(splat(low), x));
#elif defined(ENGINE_AVX2)
  return _mm256_min_ps(splat(high), _mm256_max_ps(splat(low), x));
#else
  return x < low ? splat(low) : x > high ? splat(high) : x;
#endif
}

// Round to nearest even; a NaN stays a NaN.
ENGINE_INLINE BFloat16 to_bfloat16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
// Likewise, but numbers below 2^-126 become zeros.
ENGINE_INLINE void store_rounded(BFloat16* to, Vf values) {
#if defined(ENGINE_BF16)
  store(to, _mm512_cvtneps_pbh(values));
#else
  typedef uint16_t Raw __attribute__((vector_size(2 * kLanes), may_alias));
  const Vi bits = bit_cast<Vi>(values), size = bits & 0x7fffffff;
  const Vi rounded = size < 0x00800000 ? bits & int32_t(0x80000000) : bits + 0x7fff + (bits >> 16 & 1);
  store(to, __builtin_convertvector((size > 0x7f800000 ? bits | 0x400000 : rounded) >> 16, Raw));
#endif
}
// Round to nearest even. What is finite stays so: beyond 65504, the largest float16, it becomes that. NaN stays a NaN.
ENGINE_INLINE Half to_half(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size >= 0x7f800000) return {uint16_t(sign | (size > 0x7f800000 ? 0x7e00 : 0x7c00))};
  if (size > 0x477fe000) return {uint16_t(sign | 0x7bff)};
  if (size < 0x38800000)  // a multiple of 2^-24, as floats from 0.5 to 1 are
    return {uint16_t(sign | (bit_cast<uint32_t>(bit_cast<float>(size) + 0.5f) - 0x3f000000))};
  return {uint16_t(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13)};
}
ENGINE_INLINE void store_rounded(Half* to, Vf values) {
#if defined(ENGINE_AVX512) || defined(ENGINE_AVX2)
  const Vf limited = (bit_cast<Vi>(values) & 0x7fffffff) < 0x7f800000 ? clamp(values, -65504.0f, 65504.0f) : values;
#if defined(ENGINE_AVX512)
  store(to, _mm512_cvtps_ph(limited, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  store(to, _mm256_cvtps_ph(limited, _MM_FROUND_TO_NEAREST_INT));
#endif
#else
  for (int lane = 0; lane < kLanes; ++lane) to[lane] = to_half(values[lane]);
#endif
}
ENGINE_INLINE void store_as(float* to, float value) { *to = value; }
ENGINE_INLINE void store_as(BFloat16* to, float value) { *to = to_bfloat16(value); }

ENGINE_INLINE Vf fma(Vf a, Vf b, Vf c) {
#if defined(ENGINE_AVX512)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(ENGINE_AVX2)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

ENGINE_INLINE Vi round_to_int(Vf value) {
#if defined(ENGINE_AVX512)
  return bit_cast<Vi>(_mm512_cvtps_epi32(value));
#elif defined(ENGINE_AVX2)
  return bit_cast<Vi>(_mm256_cvtps_epi32(value));
#elif defined(__SSE2__)
  return bit_cast<Vi>(_mm_cvtps_epi32(value));
#else
  Vi rounded;
  for (int lane = 0; lane < kLanes; ++lane) rounded[lane] = int32_t(std::nearbyint(value[lane]));
  return rounded;
#endif
}

template <class Vector>
ENGINE_INLINE Vector max(Vector a, Vector b) {
  return a > b ? a : b;
}

// For each byte, 0 to 15, that of the table.
ENGINE_INLINE Vb look_up(const int8_t (&table)[16], Vb indices) {
#if defined(ENGINE_AVX512)
  return bit_cast<Vb>(_mm512_shuffle_epi8(_mm512_broadcast_i32x4(load_vector<__m128i>(table)), bit_cast<__m512i>(indices)));
#elif defined(ENGINE_AVX2)
  return bit_cast<Vb>(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_vector<__m128i>(table)), bit_cast<__m256i>(indices)));
#else
  return __builtin_shuffle(load_vector<Vb>(table), indices);
#endif
}

// The vector with its lanes moved down by `Distance`, around the end.
template <int Distance, class Vector>
ENGINE_INLINE Vector rotate(Vector value) {
  Vi lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = (lane + Distance) % kLanes;
  return __builtin_shuffle(value, lanes);
}

// Halving tree: the order is fixed by the vector width alone.
template <class Vector>
ENGINE_INLINE auto reduce_add(Vector value) {
  if constexpr (kLanes >= 16) value = value + rotate<8>(value);
  if constexpr (kLanes >= 8) value = value + rotate<4>(value);
  value = value + rotate<2>(value);
  return value[0] + value[1];
}
template <class Vector>
ENGINE_INLINE auto reduce_max(Vector value) {
  if constexpr (kLanes >= 16) value = max(value, rotate<8>(value));
  if constexpr (kLanes >= 8) value = max(value, rotate<4>(value));
  value = max(value, rotate<2>(value));
  return value[0] > value[1] ? value[0] : value[1];
}

// The elements of a and b in turns: those of their first halves, and those of their second.
ENGINE_INLINE Vf interleave_low(Vf a, Vf b) {
#if defined(ENGINE_AVX512)
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(ENGINE_AVX2)
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}
ENGINE_INLINE Vf interleave_high(Vf a, Vf b) {
#if defined(ENGINE_AVX512)
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(ENGINE_AVX2)
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// Rows become columns. Each round moves the bits of an element's place by one.
ENGINE_INLINE void transpose(Vf (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    Vf moved[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      moved[2 * i] = interleave_low(rows[i], rows[i + kLanes / 2]);
      moved[2 * i + 1] = interleave_high(rows[i], rows[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = moved[i];
  }
}

}  // namespace engine

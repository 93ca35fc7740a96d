// Integer dot products of quantized weights and activations.
//
// A lane is one output feature and holds four consecutive k as bytes. The accumulators below are
// exact on every ISA, so all of them agree bitwise:
//   CodeDot<Most>  weights 0..Most, activations -127..127; unrolled, so that it knows the number of additions
//   ByteDot        weights -128..127, activations -127..127
//   RowDot         weights and activations -128..127, up to kMostRowQuads additions
#pragma once

#include "simd.h"

#if (defined(ENGINE_AVX512) && defined(__AVX512VNNI__)) || (defined(ENGINE_AVX2) && defined(__AVXVNNI__))
#define ENGINE_VNNI
#endif

namespace engine {

// The bits of `mask` of every byte, moved up by `distance`, or down where that is negative.
ENGINE_INLINE Vb bits_moved(Vb bytes, int distance, uint8_t mask) {
  typedef uint16_t Pairs __attribute__((vector_size(4 * kLanes), may_alias));  // x86 shifts no single bytes
  const Pairs pairs = bit_cast<Pairs>(bytes);
  return bit_cast<Vb>(distance < 0 ? pairs >> -distance : pairs << distance) & mask;
}

#if defined(ENGINE_VNNI)

ENGINE_INLINE Vi add_products(Vi sum, Vb unsigned_weight, Vb activation) {
#if defined(ENGINE_AVX512)
  return bit_cast<Vi>(_mm512_dpbusd_epi32(bit_cast<__m512i>(sum), bit_cast<__m512i>(unsigned_weight), bit_cast<__m512i>(activation)));
#else
  return bit_cast<Vi>(_mm256_dpbusd_avx_epi32(bit_cast<__m256i>(sum), bit_cast<__m256i>(unsigned_weight), bit_cast<__m256i>(activation)));
#endif
}

template <int Most>
struct CodeDot {
  Vi sum{};
  ENGINE_INLINE void add(Vb weight, Vb activation) { sum = add_products(sum, weight, activation); }
  ENGINE_INLINE Vi total() const { return sum; }
};

// The instruction wants unsigned weights: they are shifted by 128, which adds 128 times the
// sum of the activations to the result.
struct ByteDot {
  typedef Vb Weight;
  static ENGINE_INLINE Weight prepare(Vb weight) { return weight ^ 0x80; }

  Vi sum{};
  ENGINE_INLINE void add(Weight weight, Vb activation) { sum = add_products(sum, weight, activation); }
  ENGINE_INLINE Vi total(int32_t activation_sum) const { return sum - 128 * activation_sum; }
};

struct RowDot {
  using Activation = int8_t;  // how it reads them
  using Weight = Vb;
  static ENGINE_INLINE Weight load(const uint8_t* bytes) { return load_vector<Vb>(bytes) ^ 0x80; }
  static ENGINE_INLINE Vb quad(const Activation* x) { return splat_quad(x); }

  Vi sum{};
  ENGINE_INLINE void add(Weight weight, Vb activation) { sum = add_products(sum, weight, activation); }
  ENGINE_INLINE Vi total(int32_t activation_sum) const { return sum - 128 * activation_sum; }
};

#elif defined(ENGINE_AVX512) || defined(ENGINE_AVX2)
#define ENGINE_PAIRS

#if defined(ENGINE_AVX512)
typedef __m512i Vs;  // pairs of products, 16 bits each
ENGINE_INLINE Vs multiply_pairs(Vb unsigned_bytes, Vb signed_bytes) {
  return _mm512_maddubs_epi16(bit_cast<Vs>(unsigned_bytes), bit_cast<Vs>(signed_bytes));
}
ENGINE_INLINE Vs add_pairs(Vs a, Vs b) { return _mm512_add_epi16(a, b); }
ENGINE_INLINE Vi multiply_words(Vs a, Vs b) { return bit_cast<Vi>(_mm512_madd_epi16(a, b)); }
ENGINE_INLINE Vi widen(Vs pairs) { return multiply_words(pairs, _mm512_set1_epi16(1)); }
ENGINE_INLINE Vs words_of(const uint8_t* bytes) { return _mm512_cvtepi8_epi16(load_vector<__m256i>(bytes)); }
ENGINE_INLINE Vs splat_words(int64_t four) { return _mm512_set1_epi64(four); }
ENGINE_INLINE Vb magnitude(Vb weight) { return bit_cast<Vb>(_mm512_abs_epi8(bit_cast<Vs>(weight))); }
typedef __mmask64 Sign;
ENGINE_INLINE Sign sign_of(Vb weight) { return _mm512_movepi8_mask(bit_cast<Vs>(weight)); }
ENGINE_INLINE Vb apply_sign(Vb activation, Sign negative) {
  return bit_cast<Vb>(_mm512_mask_sub_epi8(bit_cast<Vs>(activation), negative, _mm512_setzero_si512(), bit_cast<Vs>(activation)));
}
#else
typedef __m256i Vs;
ENGINE_INLINE Vs multiply_pairs(Vb unsigned_bytes, Vb signed_bytes) {
  return _mm256_maddubs_epi16(bit_cast<Vs>(unsigned_bytes), bit_cast<Vs>(signed_bytes));
}
ENGINE_INLINE Vs add_pairs(Vs a, Vs b) { return _mm256_add_epi16(a, b); }
ENGINE_INLINE Vi multiply_words(Vs a, Vs b) { return bit_cast<Vi>(_mm256_madd_epi16(a, b)); }
ENGINE_INLINE Vi widen(Vs pairs) { return multiply_words(pairs, _mm256_set1_epi16(1)); }
ENGINE_INLINE Vs words_of(const uint8_t* bytes) { return _mm256_cvtepi8_epi16(load_vector<__m128i>(bytes)); }
ENGINE_INLINE Vs splat_words(int64_t four) { return _mm256_set1_epi64x(four); }
ENGINE_INLINE Vb magnitude(Vb weight) { return bit_cast<Vb>(_mm256_abs_epi8(bit_cast<Vs>(weight))); }
typedef Vb Sign;
ENGINE_INLINE Sign sign_of(Vb weight) { return weight; }
ENGINE_INLINE Vb apply_sign(Vb activation, Sign weight) {
  return bit_cast<Vb>(_mm256_sign_epi8(bit_cast<Vs>(activation), bit_cast<Vs>(weight)));
}
#endif

// Pairs of products are widened before they could exceed 16 bits: of nibbles after 8 additions, which a group has.
template <int Most>
struct CodeDot {
  static constexpr int kMostPairs = INT16_MAX / (2 * Most * 127);

  Vi sum{};
  Vs pairs{};
  int count = 0;
  ENGINE_INLINE void add(Vb weight, Vb activation) {
    pairs = add_pairs(pairs, multiply_pairs(weight, activation));
    if (++count % kMostPairs == 0) sum += widen(pairs), pairs = Vs{};
  }
  ENGINE_INLINE Vi total() const { return count % kMostPairs == 0 ? sum : sum + widen(pairs); }
};

// A pair of unsigned times signed bytes may exceed 16 bits; |weight| times (activation with
// the weight's sign) reaches 2 * 128 * 127 = 32512 and does not.
struct ByteDot {
  struct Weight {
    Vb size;
    Sign sign;
  };
  static ENGINE_INLINE Weight prepare(Vb weight) { return {magnitude(weight), sign_of(weight)}; }

  Vi sum{};
  ENGINE_INLINE void add(Weight weight, Vb activation) { sum += widen_pairs(weight, activation); }
  ENGINE_INLINE Vi total(int32_t) const { return sum; }

 private:
  static ENGINE_INLINE Vi widen_pairs(Weight weight, Vb activation) {
    return widen(multiply_pairs(weight.size, apply_sign(activation, weight.sign)));
  }
};

// With activations of -128 no sign can be moved to them: both sides are 16 bits, each half of the lanes has a sum of its
// own, and two of its lanes are an output.
struct RowDot {
  using Activation = int16_t;
  struct Weight {
    Vs halves[2];
  };
  static ENGINE_INLINE Weight load(const uint8_t* bytes) { return {words_of(bytes), words_of(bytes + 2 * kLanes)}; }
  static ENGINE_INLINE Vs quad(const Activation* x) {
    int64_t four;
    std::memcpy(&four, x, sizeof(four));
    return splat_words(four);
  }

  Vi sums[2] = {};
  ENGINE_INLINE void add(Weight weight, Vs activation) {
    for (int half = 0; half < 2; ++half) sums[half] += multiply_words(weight.halves[half], activation);
  }
  ENGINE_INLINE Vi total(int32_t) const {
    Vi even, odd;
    for (int lane = 0; lane < kLanes; ++lane) even[lane] = 2 * lane, odd[lane] = 2 * lane + 1;
    return __builtin_shuffle(sums[0], sums[1], even) + __builtin_shuffle(sums[0], sums[1], odd);
  }
};

#else

ENGINE_INLINE Vi add_products(Vi sum, Vb weight, Vb activation) {
  const Vi w = bit_cast<Vi>(weight), a = bit_cast<Vi>(activation);
  sum += (w << 24 >> 24) * (a << 24 >> 24);
  sum += (w << 16 >> 24) * (a << 16 >> 24);
  sum += (w << 8 >> 24) * (a << 8 >> 24);
  return sum + (w >> 24) * (a >> 24);
}

template <int Most>
struct CodeDot {
  Vi sum{};
  ENGINE_INLINE void add(Vb weight, Vb activation) { sum = add_products(sum, weight, activation); }
  ENGINE_INLINE Vi total() const { return sum; }
};

struct ByteDot {
  typedef Vb Weight;
  static ENGINE_INLINE Weight prepare(Vb weight) { return weight; }

  Vi sum{};
  ENGINE_INLINE void add(Weight weight, Vb activation) { sum = add_products(sum, weight, activation); }
  ENGINE_INLINE Vi total(int32_t) const { return sum; }
};

struct RowDot {
  using Activation = int8_t;
  using Weight = Vb;
  static ENGINE_INLINE Weight load(const uint8_t* bytes) { return load_vector<Vb>(bytes); }
  static ENGINE_INLINE Vb quad(const Activation* x) { return splat_quad(x); }

  Vi sum{};
  ENGINE_INLINE void add(Weight weight, Vb activation) { sum = add_products(sum, weight, activation); }
  ENGINE_INLINE Vi total(int32_t) const { return sum; }
};

#endif

// Weights made unsigned have the largest sums, of 255 * 128 for each k, which stay within 32 bits.
constexpr int64_t kMostRowQuads = int64_t{INT32_MAX} / (4 * 255 * 128);

}  // namespace engine

// How keys and values lie in the cache: element types, and the layout of one block of one head.
//
// A block of a head is one run of memory. Keys lie transposed in it, [head_dim, block_size], and
// values plainly, [block_size, head_dim]. bfloat16 ones lie in the pairs that one instruction
// multiplies and adds: keys [head_dim / 2, block_size, 2], values [block_size / 2, head_dim, 2].
// float16 ones lie as float32 ones do and are widened in registers, by an instruction for a whole vector.
// int8 elements are quants, value = scale * quant, one scale for each key and for each value; the
// block's float32 scales, [block_size], follow its quants. Values that are narrower than keys lie in
// rows of head_dim, too, zeros behind them.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "products.h"

namespace engine {

template <class Element>
constexpr bool kScaled = std::is_same_v<Element, int8_t>;

// What multiplies a cache's elements: those of a query, or weights, rounded to the cache's type where that has
// products of its own. Without an instruction for those, they are widened once and not at every product.
template <class Element>
using Multiplier = std::conditional_t<kTogether<Element> == 2 && kMultipliesPairs, BFloat16, float>;

// Writes a vector of multipliers for a cache of `Element`. They are finite, or the NaN of an operation.
template <class Element>
ENGINE_INLINE void store_multipliers(Multiplier<Element>* to, Vf values) {
  if constexpr (kTogether<Element> == 1) {
    store(to, values);
  } else {
#if defined(ENGINE_BF16)
    store(to, _mm512_cvtneps_pbh(values));
#else
    const Vi bits = bit_cast<Vi>(values);
    store(to, (bits + 0x7fff + (bits >> 16 & 1)) & int32_t(0xffff0000));  // as to_bfloat16
#endif
  }
}

// Elements of one key or value [count], and its scale where the type has one.
inline float encode(const float* __restrict from, int64_t count, float* __restrict to) {
  for (int64_t d = 0; d < count; ++d) to[d] = from[d];
  return 1.0f;
}
inline float encode(const float* __restrict from, int64_t count, BFloat16* __restrict to) {
  for (int64_t d = 0; d < count; ++d) to[d] = to_bfloat16(from[d]);
  return 1.0f;
}
inline float encode(const float* __restrict from, int64_t count, Half* __restrict to) {
  int64_t d = 0;
  for (; d + kLanes <= count; d += kLanes) store_rounded(to + d, load(from + d));
  for (; d < count; ++d) to[d] = to_half(from[d]);
  return 1.0f;
}
// A query that is to be multiplied with keys in bfloat16: as multipliers of a type, BFloat16 itself or floats.
template <class Factor>
void encode_multipliers(const float* __restrict from, int64_t count, Factor* __restrict to) {
  if constexpr (std::is_same_v<Factor, BFloat16>) encode(from, count, to);
  else
    for (int64_t d = 0; d < count; ++d) to[d] = to_float(to_bfloat16(from[d]));
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

// Elements that are copied before they are multiplied: those that have no products of their own are widened then.
template <class Element>
using Copied = std::conditional_t<std::is_same_v<Element, BFloat16>, BFloat16, float>;
inline float copied(float value) { return value; }
inline float copied(Half value) { return to_float(value); }
inline float copied(int8_t value) { return value; }
inline BFloat16 copied(BFloat16 value) { return value; }

// Pairs of elements of a position, and those of the next position: each element of both side by side, the first kLanes at `low`.
ENGINE_INLINE void store_pairs(BFloat16* low, BFloat16* high, Vi first, Vi second) {
  const Vf even = bit_cast<Vf>((first & splat(0xffff)) | second << 16);
  const Vf odd = bit_cast<Vf>((first >> 16 & splat(0xffff)) | (second & splat(int32_t(0xffff0000))));
  store(low, interleave_low(even, odd));
  store(high, interleave_high(even, odd));
}

// Copies of values, so that a panel's positions lie one after another: [panels, positions, 16], or in pairs of positions
// [panels, positions / 2, 16, 2] where elements are multiplied in pairs.
template <class Element>
struct CopiedValues {
  using Value = Copied<Element>;
  static constexpr int kPart = kTogether<Element>;
  static constexpr int64_t kStride = kPanel * kPart;  // from one position, or pair of positions, to the next

  Value* first;
  int64_t positions;  // of all blocks

  int64_t panel_stride() const { return positions * kPanel; }
  Value* block(int64_t position) const { return first + position * kPanel; }
  Value* at(int64_t position, int64_t d) const {
    return first + d / kPanel * panel_stride() + position / kPart * kStride + d % kPanel * kPart + position % kPart;
  }
  // Zeros behind the first `count` elements of the positions from begin to end, up to a whole panel.
  void pad(int64_t begin, int64_t end, int64_t count) const {
    for (int64_t d = count; d % kPanel != 0; ++d)
      for (int64_t j = begin; j < end; ++j) *at(j, d) = Value{};
  }
};

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
  // scratch: [head_dim]
  void write_key(Element* block, int64_t offset, const float* key, Element* scratch) const {
    constexpr int kPart = kTogether<Element>;
    write_scale(block, offset, encode(key, head_dim, scratch));
    for (int64_t d = 0; d < head_dim; d += kPart) std::copy_n(scratch + d, kPart, block + d * block_size + offset * kPart);
  }
  void write_value(Element* block, int64_t offset, const float* value, Element* scratch) const {
    constexpr int kPart = kTogether<Element>;
    Element* const row = block + offset / kPart * kPart * head_dim + offset % kPart;
    write_scale(block, offset, encode(value, head_dim, kPart == 1 ? row : scratch));
    if constexpr (kPart > 1)
      for (int64_t d = 0; d < head_dim; ++d) row[d * kPart] = scratch[d];
  }

  // Copies the first `count` elements of every value of a block, which is the one from `position` on.
  void copy_values(const Element* block, int64_t count, const CopiedValues<Element>& to, int64_t position) const {
    constexpr int kPart = kTogether<Element>;
    for (int64_t begin = 0; begin < count; begin += kPanel) {
      const int64_t here = std::min<int64_t>(kPanel, count - begin);
      for (int64_t j = 0; j < block_size; ++j) {
        const Element* const from = block + (j / kPart * head_dim + begin) * kPart + j % kPart;
        Copied<Element>* const row = to.at(position + j, begin);
        for (int64_t d = 0; d < here; ++d) row[d * kPart] = copied(from[d * kPart]);
      }
    }
    to.pad(position, position + block_size, count);
  }
  // The same of every key.
  void copy_keys(const Element* block, int64_t count, const CopiedValues<Element>& to, int64_t position) const {
    constexpr int kPart = kTogether<Element>;
    int64_t d = 0;
    for (; d + kPart * kLanes <= count; d += kPart * kLanes)
      for (int64_t j = 0; j < block_size; j += kLanes) {
        Vf rows[kLanes];  // of one element, or two, of each position; then of one position
        for (int i = 0; i < kLanes; ++i) {
          const Element* const from = block + (d + kPart * i) * block_size + kPart * j;
          if constexpr (kPart == 1) rows[i] = multiplicands(from);
          else rows[i] = load_vector<Vf>(from);
        }
        transpose(rows);
        for (int i = 0; i < kLanes; i += kPart) {
          Copied<Element>* const row = to.at(position + j + i, d);
          if constexpr (kPart == 1) store(row, rows[i]);
          else store_pairs(row, to.at(position + j + i, d + kLanes), bit_cast<Vi>(rows[i]), bit_cast<Vi>(rows[i + 1]));
        }
      }
    for (; d < count; ++d)
      for (int64_t j = 0; j < block_size; ++j) *to.at(position + j, d) = copied(block[d / kPart * kPart * block_size + j * kPart + d % kPart]);
    to.pad(position, position + block_size, count);
  }
};

}  // namespace engine

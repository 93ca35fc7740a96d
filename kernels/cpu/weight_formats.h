// How weights of the block formats lie in a panel, and come into vectors: one type per row of
// linear/blocks.py. linear/formats.py says where everything is.
#pragma once

#include "activations.h"
#include "dot.h"

namespace engine {

constexpr int kQuads = kGroup / 4;
constexpr int kQuadBytes = 4 * kPanel;  // four consecutive k of the 16 outputs of a panel

// Bits of the codes of a group, `Width` of each: the quads of k that share a byte lie above each other. Of four bits,
// these are a quad of the first half of the group and one of the second, of fewer bits neighbours.
template <int Width>
struct Plane {
  static constexpr int kBytes = kGroup * Width / 8 * kPanel;
  static constexpr uint8_t kMask = (1 << Width) - 1;
  static constexpr int offset(int quad) { return (Width == 4 ? quad % 4 : quad * Width / 8) * kQuadBytes; }
  static constexpr int shift(int quad) { return Width == 4 ? quad / 4 * 4 : quad * Width % 8; }

  // Moved up by `distance`.
  static ENGINE_INLINE Vb quad(const uint8_t* plane, int quad, int distance) {
    return bits_moved(load_vector<Vb>(plane + offset(quad)), distance - shift(quad), uint8_t(kMask << distance));
  }
  static int element(const uint8_t* plane, int k, int n) { return plane[offset(k / 4) + n * 4 + k % 4] >> shift(k / 4) & kMask; }
};

// The codes of a group: a plane of four bits, or of two, and what is above them.
template <int Bits>
struct Codes {
  static constexpr int kBytes = kGroup * Bits / 8 * kPanel, kLow = Bits >= 4 ? 4 : 2;
  using Low = Plane<kLow>;
  using High = Plane<Bits - kLow>;

  static ENGINE_INLINE Vb quad(const uint8_t* group, int quad) {
    const Vb low = Low::quad(group, quad, 0);
    if constexpr (Bits == kLow) return low;
    else return low | High::quad(group + Low::kBytes, quad, kLow);
  }
  static int element(const uint8_t* group, int k, int n) {
    const int low = Low::element(group, k, n);
    if constexpr (Bits == kLow) return low;
    else return low | High::element(group + Low::kBytes, k, n) << kLow;
  }
};
template <>
struct Codes<8> {
  static constexpr int kBytes = kQuads * kQuadBytes;

  static ENGINE_INLINE Vb quad(const uint8_t* group, int quad) { return load_vector<Vb>(group + quad * kQuadBytes); }
  static int element(const uint8_t* group, int k, int n) { return group[k / 4 * kQuadBytes + n * 4 + k % 4]; }
};

// What codes stand for, and `byte`, what is multiplied of a code: the code with `Zero` subtracted,
template <int Bits, int Zero>
struct Shifted {
  using Code = Codes<Bits>;
  using Dot = CodeDot<(1 << Bits) - 1>;
  using Weight = Vb;

  static ENGINE_INLINE Vb byte(Vb code) { return code; }
  static ENGINE_INLINE Weight weight(Vb byte) { return byte; }
  static ENGINE_INLINE Vi total(const Dot& dot, int32_t x_sum) { return Zero == 0 ? dot.total() : dot.total() - splat(x_sum) * Zero; }
  static ENGINE_INLINE Vb signed_byte(Vb code) { return code - uint8_t(Zero); }
  static int value(int code) { return code - Zero; }
};
// the signed byte that it is,
struct Bytes {
  using Code = Codes<8>;
  using Dot = ByteDot;
  using Weight = ByteDot::Weight;

  static ENGINE_INLINE Vb byte(Vb code) { return code; }
  static ENGINE_INLINE Weight weight(Vb byte) { return ByteDot::prepare(byte); }
  static ENGINE_INLINE Vi total(const Dot& dot, int32_t x_sum) { return dot.total(x_sum); }
  static ENGINE_INLINE Vb signed_byte(Vb code) { return code; }
  static int value(int code) { return int8_t(code); }
};
// that of a table,
template <const int8_t (&Table)[16]>
struct Looked {
  using Code = Codes<4>;
  using Dot = ByteDot;
  using Weight = ByteDot::Weight;

  static ENGINE_INLINE Vb byte(Vb code) { return signed_byte(code); }
  static ENGINE_INLINE Weight weight(Vb byte) { return ByteDot::prepare(byte); }
  static ENGINE_INLINE Vi total(const Dot& dot, int32_t x_sum) { return dot.total(x_sum); }
  static ENGINE_INLINE Vb signed_byte(Vb code) { return look_up(Table, code); }
  static int value(int code) { return Table[code]; }
};
// or that of a table of small numbers, -Most to Most: with `Most` added they are unsigned, and cost no more than codes.
template <const int8_t (&Table)[16], int Most>
struct LookedSmall {
  using Code = Codes<4>;
  using Dot = CodeDot<2 * Most>;
  using Weight = Vb;

  static ENGINE_INLINE Vb byte(Vb code) { return signed_byte(code) + uint8_t(Most); }
  static ENGINE_INLINE Weight weight(Vb byte) { return byte; }
  static ENGINE_INLINE Vi total(const Dot& dot, int32_t x_sum) { return dot.total() - splat(x_sum) * Most; }
  static ENGINE_INLINE Vb signed_byte(Vb code) { return look_up(Table, code); }
  static int value(int code) { return Table[code]; }
};

// The power of two of an e8m0 byte, halved: tables have whole numbers, which are the doubles of what e2m1 means.
struct HalfPower {
  uint8_t exponent;
};
ENGINE_INLINE float to_float(HalfPower value) {
  const uint32_t e = value.exponent;
  return bit_cast<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}
ENGINE_INLINE Vf load(const HalfPower* from) {
  const Vi e = load_lanes(&from->exponent), tiny = e == 0 ? splat(0x00200000) : splat(0x00400000);
  return bit_cast<Vf>(e < 2 ? tiny : (e - 1) << 23);
}

// An e4m3 byte, halved as well: 1 + m / 8 times a power of two, or m times the smallest.
struct HalfE4m3 {
  uint8_t bits;
};
ENGINE_INLINE float to_float(HalfE4m3 value) {
  const uint32_t magnitude = value.bits & 0x7f, sign = uint32_t(value.bits & 0x80) << 24;
  const float size = magnitude < 8 ? float(magnitude) * 0x1p-10f : bit_cast<float>((magnitude << 20) + (119 << 23));
  return bit_cast<float>(bit_cast<uint32_t>(size) | sign);
}
ENGINE_INLINE Vf load(const HalfE4m3* from) {
  const Vi bits = load_lanes(&from->bits), magnitude = bits & 0x7f;
  const Vi small = bit_cast<Vi>(to_float(magnitude) * 0x1p-10f), size = magnitude < 8 ? small : (magnitude << 20) + (119 << 23);
  return bit_cast<Vf>(size | (bits & 0x80) << 24);
}

// A number by which scales are divided.
struct Divisor {
  float value;
};
ENGINE_INLINE float to_float(Divisor divisor) { return 1.0f / divisor.value; }
ENGINE_INLINE Vf load(const Divisor* from) { return 1.0f / load_vector<Vf>(from); }

// A scale times d, as whoever published the format computes it.
template <class Number>
ENGINE_INLINE float scaled(float scale, Number d) { return to_float(d) * scale; }
ENGINE_INLINE float scaled(float scale, Divisor d) { return scale / d.value; }

// What is added to the products of a group: the sums of its activations (of both halves, where they have minima of
// their own) times the minima.
template <bool Has, bool Halves>
struct Minima {
  ENGINE_INLINE Vf add(Vf sum, const ActivationGroup&) const { return sum; }
};
template <>
struct Minima<true, false> {
  Vf m;
  ENGINE_INLINE Vf add(Vf sum, const ActivationGroup& x) const { return sum + m * x.scaled_sum; }
};
template <>
struct Minima<true, true> {
  Vf m, first, second;
  ENGINE_INLINE Vf add(Vf sum, const ActivationGroup& x) const {
    const Vf integers = fma(first, splat(float(x.half_sums[0])), second * float(x.half_sums[1]));  // exact
    return sum + integers * (m * x.scale);
  }
};

// Scales of the dot products of both halves.
template <bool Halves>
struct Subscales {};
template <>
struct Subscales<true> {
  Vf first, second;
};

// What beside codes and their meaning a format has.
struct Traits {
  bool min = false;         // a minimum
  bool zero_point = false;  // of each block
  int groups = 1;           // of a block
  int subscales = 0;        // scales of a group; where there are two, the dot product is of both halves, each times its own
  bool e4m3_scales = false; // they are no integers
  bool of_rows = false;     // d and m are of the whole row: a head of the panel, and groups after it; scales are unsigned
};

// Number: how d and m are stored.
template <class Values, Traits Has, class Number = Half>
struct BlockFormat {
  using Code = typename Values::Code;
  using Dot = typename Values::Dot;
  static constexpr bool kHasMinima = Has.min || Has.zero_point, kHalves = Has.subscales == 2;
  static constexpr int kGroups = Has.groups, kSubscales = Has.subscales;
  static constexpr int kParts = kHalves ? 2 : 1;  // dot products of a group
  static constexpr int kGroupBytes = Code::kBytes + kSubscales * (Has.min ? 2 : 1) * kPanel;
  static constexpr int kNumberBytes = int(sizeof(Number)) * (Has.min ? 2 : 1) * kPanel;
  static constexpr int kHeadBytes = kNumberBytes + Has.zero_point * kPanel;
  static constexpr int kBytes = kHeadBytes + kGroups * kGroupBytes;  // of a block of a panel
  static constexpr bool kOfRows = Has.of_rows, kHeadFirst = kGroups > 1 || kOfRows;
  static constexpr int kStride = kOfRows ? kGroupBytes : kBytes;  // between blocks, of which a row has as many as groups
  static constexpr int kFirstGroup = kHeadFirst ? kHeadBytes : 0;
  static constexpr int kHead = kHeadFirst ? 0 : Code::kBytes;
  static constexpr int kAtOnce = Code::kBytes == kQuads * kQuadBytes ? 1 : 2, kSteps = kQuads / kAtOnce;
  static_assert(!Has.zero_point || (!Has.min && kSubscales == 0));
  static_assert(!Has.of_rows || (kGroups == 1 && kSubscales <= 1));

  static int64_t panel_bytes(int64_t groups) { return Has.of_rows ? kHeadBytes + groups * kGroupBytes : groups / kGroups * kBytes; }
  // Where the block of a group of a panel is, with its numbers, and the group itself, with its codes.
  static ENGINE_INLINE const uint8_t* block_at(const uint8_t* panel, int64_t group) {
    return Has.of_rows ? panel : panel + group / kGroups * kBytes;
  }
  static ENGINE_INLINE const uint8_t* group_at(const uint8_t* panel, int64_t group) {
    return Has.of_rows ? panel + kHeadBytes + group * kGroupBytes : block_at(panel, group) + kFirstGroup + group % kGroups * kGroupBytes;
  }

  // The quads of a step: one, or where a load gives two, one of each half of the group.
  struct Weight {
    typename Values::Weight quads[kAtOnce];
  };
  static ENGINE_INLINE Weight load(const uint8_t* group, int step) {
    Weight weight;
#pragma GCC unroll 2
    for (int i = 0; i < kAtOnce; ++i) weight.quads[i] = Values::weight(Values::byte(Code::quad(group, i * kSteps + step)));
    return weight;
  }
  // The bytes of a group that are multiplied, of kLanes outputs.
  struct Unpacked {
    Vb quads[kQuads];
  };
  static constexpr bool kUnpacks = Code::kBytes != kQuads * kQuadBytes;  // they are not what is stored
  static ENGINE_INLINE void unpack(const uint8_t* group, Unpacked& to) {
#pragma GCC unroll 8
    for (int quad = 0; quad < kQuads; ++quad) to.quads[quad] = Values::byte(Code::quad(group, quad));
  }
  static ENGINE_INLINE Weight load(const Unpacked& group, int step) {
    Weight weight;
#pragma GCC unroll 2
    for (int i = 0; i < kAtOnce; ++i) weight.quads[i] = Values::weight(group.quads[i * kSteps + step]);
    return weight;
  }
  struct Dots {
    Dot parts[kParts];
  };
  static ENGINE_INLINE void add(Dots& dots, Weight weight, const int8_t* x, int step) {
#pragma GCC unroll 2
    for (int i = 0; i < kAtOnce; ++i) dots.parts[i * (kParts - 1)].add(weight.quads[i], splat_quad(x + (i * kSteps + step) * 4));
  }

  // What a group has beside its codes, of the outputs from n on, and what is made of it.
  struct Numbers {
    Vf scale;
    [[no_unique_address]] Subscales<kHalves> subscales;
    [[no_unique_address]] Minima<kHasMinima, kHalves> minima;

    // The dot product: an integer, and exact; with e4m3 scales, the sum of two exact products.
    ENGINE_INLINE Vf total(const Dots& dots, const ActivationGroup& x) const {
      if constexpr (kHalves) return total(Values::total(dots.parts[0], x.half_sums[0]), Values::total(dots.parts[1], x.half_sums[1]));
      else return to_float(Values::total(dots.parts[0], x.sum));
    }
    ENGINE_INLINE Vf total(Vi first, Vi second) const {
      return fma(to_float(first), subscales.first, to_float(second) * subscales.second);
    }
    ENGINE_INLINE Vf add(Vf sum, Vf total, const ActivationGroup& x) const { return minima.add(sum + total * (scale * x.scale), x); }
  };
  static ENGINE_INLINE Numbers numbers(const uint8_t* block, const uint8_t* codes, int n) {
    Numbers made;
    const Vf d = engine::load(stored(block) + n);
    made.scale = d;
    if constexpr (kSubscales == 1) made.scale = d * subscale(codes, 0, n);
    if constexpr (kHalves) made.subscales = {subscale(codes, 0, n), subscale(codes, 1, n)};
    if constexpr (Has.zero_point) made.minima = {-(d * zero_point(block, n))};
    if constexpr (Has.min) {
      const Vf m = engine::load(stored(block) + kPanel + n);
      if constexpr (kHalves) made.minima = {-m, subscale(codes, 2, n), subscale(codes, 3, n)};
      else if constexpr (kSubscales == 1) made.minima = {-(m * subscale(codes, 1, n))};
      else made.minima = {m};
    }
    return made;
  }
  static ENGINE_INLINE Vf zero_point(const uint8_t* block, int n) {
    return to_float(load_lanes(signed_at(block + kHead + kNumberBytes + n)));
  }
  // Scales, and then integer minima.
  static ENGINE_INLINE Vf subscale(const uint8_t* group, int row, int n) {
    const uint8_t* from = group + Code::kBytes + row * kPanel + n;
    if constexpr (Has.e4m3_scales) return engine::load(reinterpret_cast<const HalfE4m3*>(from));
    else if constexpr (Has.of_rows) return to_float(load_lanes(from));
    else return to_float(load_lanes(signed_at(from)));
  }
  static float subscale(const uint8_t* from) {
    return Has.e4m3_scales ? to_float(HalfE4m3{*from}) : Has.of_rows ? float(*from) : float(int8_t(*from));
  }

  static ENGINE_INLINE const int8_t* signed_at(const uint8_t* bytes) { return reinterpret_cast<const int8_t*>(bytes); }
  static ENGINE_INLINE const Number* stored(const uint8_t* block) { return reinterpret_cast<const Number*>(block + kHead); }

  // Element (n, k) of a group.
  static float value(const uint8_t* block, const uint8_t* codes, int k, int n) {
    const uint8_t* integers = codes + Code::kBytes + (kHalves ? k / (kGroup / 2) * kPanel : 0) + n;
    const int zero_point = Has.zero_point ? int8_t(block[kHead + kNumberBytes + n]) : 0;
    const float d = kSubscales > 0 ? scaled(subscale(integers), stored(block)[n]) : to_float(stored(block)[n]);
    const float product = d * float(Values::value(Code::element(codes, k, n)) - zero_point);
    if constexpr (!Has.min) return product;
    else return product + to_float(stored(block)[kPanel + n]) * (kSubscales > 0 ? -float(integers[kSubscales * kPanel]) : 1);
  }

  // The weights of a group as int8, before its scales, with 16 * 4 bytes for every four k: where they lie, or in `to`.
  // For vectors as wide as a panel.
  static ENGINE_INLINE const uint8_t* signed_bytes(const uint8_t* group, uint8_t* to) {
    if constexpr (Code::kBytes == kQuads * kQuadBytes) return group;
    else {
#pragma GCC unroll 8
      for (int quad = 0; quad < kQuads; ++quad) store(to + quad * kQuadBytes, Values::signed_byte(Code::quad(group, quad)));
      return to;
    }
  }
};

constexpr int8_t kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kE2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

using Q8_0 = BlockFormat<Bytes, Traits{}>;
using Q4_0 = BlockFormat<Shifted<4, 8>, Traits{}>;
using Q4_1 = BlockFormat<Shifted<4, 0>, Traits{.min = true}>;
using Q5_0 = BlockFormat<Shifted<5, 16>, Traits{}>;
using Q5_1 = BlockFormat<Shifted<5, 0>, Traits{.min = true}>;
using Iq4_Nl = BlockFormat<Looked<kIq4>, Traits{}>;
using Mxfp4 = BlockFormat<LookedSmall<kE2m1, 12>, Traits{}, HalfPower>;
using Nvfp4_Mul = BlockFormat<LookedSmall<kE2m1, 12>, Traits{.groups = 2, .subscales = 2, .e4m3_scales = true}, float>;
using Nvfp4_Div = BlockFormat<LookedSmall<kE2m1, 12>, Traits{.groups = 2, .subscales = 2, .e4m3_scales = true}, Divisor>;
using Q2_K = BlockFormat<Shifted<2, 0>, Traits{.min = true, .groups = 8, .subscales = 2}>;
using Q3_K = BlockFormat<Shifted<3, 4>, Traits{.groups = 8, .subscales = 2}>;
using Q4_K = BlockFormat<Shifted<4, 0>, Traits{.min = true, .groups = 8, .subscales = 1}>;
using Q5_K = BlockFormat<Shifted<5, 0>, Traits{.min = true, .groups = 8, .subscales = 1}>;
using Q6_K = BlockFormat<Shifted<6, 32>, Traits{.groups = 8, .subscales = 2}>;
using Iq4_Xs = BlockFormat<Looked<kIq4>, Traits{.groups = 8, .subscales = 1}>;
template <int Block>
using W4 = BlockFormat<Shifted<4, 0>, Traits{.zero_point = true, .groups = Block / int(kGroup)}, float>;
template <int Block>
using W8 = BlockFormat<Bytes, Traits{.zero_point = true, .groups = Block / int(kGroup)}, float>;
template <int Bits>
using I_G32 = BlockFormat<Shifted<Bits, 0>, Traits{.min = true, .subscales = 1, .of_rows = true}, float>;
using W8A8 = BlockFormat<Bytes, Traits{.of_rows = true}, float>;

}  // namespace engine

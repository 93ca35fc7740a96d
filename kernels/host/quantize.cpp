// Float weights to codes with a scale and a minimum for each group: what linear/quantize.py says, to the same bytes, and fast.
//
// A lane of a vector is a row, so the order of every sum is that of the weights, whatever the vectors' width.
#include <cstdint>
#include <vector>

#include "../cpu/simd.h"

namespace engine {
namespace {

constexpr int kWeights = 32;        // of a group
constexpr int kSteps = 6;           // by which either end of the range is drawn in
constexpr int kMostSteps = 7;       // of both ends together
constexpr int kRanges = [] {        // that this gives
  int count = 0;
  for (int below = 0; below < kSteps; ++below)
    for (int above = 0; above < kSteps && below + above <= kMostSteps; ++above) ++count;
  return count;
}();
constexpr float kStep = 1.0f / 24;  // of the range
constexpr int kRefits = 3;
constexpr int kTogether = 3;        // of which the errors are found at once: each is a chain of sums that waits for itself
constexpr float kStepsOfRow = 255;

ENGINE_INLINE Vf choose(Vi which, Vf yes, Vf no) { return bit_cast<Vf>((which & bit_cast<Vi>(yes)) | (~which & bit_cast<Vi>(no))); }
ENGINE_INLINE Vf inverse(Vf d) { return choose(d != 0, 1.0f / d, Vf{}); }

// To even; for numbers below 2^22 in size.
ENGINE_INLINE Vf rounded(Vf x) {
#if defined(ENGINE_AVX512)
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(ENGINE_AVX2)
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Vf shift = splat(0x1.8p23f);
  return (x + shift) - shift;
#endif
}

// Value = d * code + m.
struct Numbers {
  Vf d, m;
};

// Of the signs that they can have.
ENGINE_INLINE Vf lowest(Vf least) { return least < 0 ? least : Vf{}; }
ENGINE_INLINE Numbers allowed(Numbers at) { return {at.d > 0 ? at.d : Vf{}, lowest(at.m)}; }

// The same group of kLanes rows.
struct Group {
  float top;                // the largest code
  const float* importance;  // of every weight
  Vf x[kWeights];

  void read(const float* from, int64_t rows, int64_t columns) {
    for (int lane = 0; lane < kLanes; ++lane)
      for (int k = 0; k < kWeights; ++k) x[k][lane] = lane < rows ? from[lane * columns + k] : 0;
  }
  void write_codes(Numbers at, uint8_t* out, int64_t rows, int64_t row_bytes) const {
    const Vf inverse_d = inverse(at.d);
    for (int k = 0; k < kWeights; ++k) {
      const Vi codes = round_to_int(code(k, inverse_d, at.m));
      for (int64_t lane = 0; lane < rows; ++lane) out[lane * row_bytes + k] = uint8_t(codes[lane]);
    }
  }

  ENGINE_INLINE Vf code(int k, Vf inverse_d, Vf m) const { return rounded(clamp((x[k] - m) * inverse_d, 0, top)); }

  template <int Count>
  ENGINE_INLINE void errors(const Numbers* at, Vf* sums) const {
    Vf inverse_d[Count], sum[Count] = {};
#pragma GCC unroll 3
    for (int i = 0; i < Count; ++i) inverse_d[i] = inverse(at[i].d);
    for (int k = 0; k < kWeights; ++k)
#pragma GCC unroll 3
      for (int i = 0; i < Count; ++i) {
        const Vf off = code(k, inverse_d[i], at[i].m) * at[i].d - (x[k] - at[i].m);
        sum[i] = sum[i] + off * off * importance[k];
      }
#pragma GCC unroll 3
    for (int i = 0; i < Count; ++i) sums[i] = sum[i];
  }
  ENGINE_INLINE Vf error(Numbers at) const {
    Vf sum;
    errors<1>(&at, &sum);
    return sum;
  }

  // Of those tried the one that loses least. Of equal ones number `first`, or else the earliest. numbers(tried[i]): what is computed with.
  template <int Count, class NumbersOf>
  ENGINE_INLINE Numbers best_of(const Numbers (&tried)[Count], int first, const NumbersOf& numbers) const {
    static_assert(Count % kTogether == 0);
    Vf lost[Count];
    for (int i = 0; i < Count; i += kTogether) {
      Numbers at[kTogether];
      for (int j = 0; j < kTogether; ++j) at[j] = numbers(tried[i + j]);
      errors<kTogether>(at, lost + i);
    }
    Numbers best = tried[first];
    Vf least = lost[first];
    for (int i = 0; i < Count; ++i) {
      const Vi better = lost[i] < least;
      best = {choose(better, tried[i].d, best.d), choose(better, tried[i].m, best.m)};
      least = choose(better, lost[i], least);
    }
    return best;
  }

  // The best of those ranges that leave out a part at either end.
  ENGINE_INLINE Numbers clipped() const {
    Vf low = x[0], high = x[0];
    for (int k = 1; k < kWeights; ++k) low = x[k] < low ? x[k] : low, high = x[k] > high ? x[k] : high;
    low = lowest(low);
    const Vf range = high - low;
    Numbers tried[kRanges];
    int count = 0;
    for (int below = 0; below < kSteps; ++below)
      for (int above = 0; above < kSteps && below + above <= kMostSteps; ++above) {
        const Vf m = low + range * (below * kStep);
        tried[count++] = {(high - range * (above * kStep) - m) / top, m};
      }
    return best_of(tried, 0, [](Numbers at) { return at; });
  }

  // What least squares gives for the codes of `at`.
  ENGINE_INLINE Numbers refitted(Numbers at) const {
    const Vf inverse_d = inverse(at.d);
    Vf weights{}, codes{}, squares{}, sum{}, products{};
    for (int k = 0; k < kWeights; ++k) {
      const Vf c = code(k, inverse_d, at.m), wc = c * importance[k], off = x[k] - at.m;
      weights = weights + importance[k];
      codes = codes + wc;
      squares = squares + wc * c;
      sum = sum + off * importance[k];
      products = products + wc * off;
    }
    const Vf determinant = weights * squares - codes * codes;
    const Vi solvable = determinant > 0;
    const Vf d = (weights * products - codes * sum) / determinant, m = at.m + (squares * sum - codes * products) / determinant;
    return {choose(solvable, d, at.d), choose(solvable, m, at.m)};
  }

  ENGINE_INLINE Numbers best() const {
    Numbers best = allowed(clipped());
    Vf least = error(best);
    for (int i = 0; i < kRefits; ++i) {
      const Numbers tried = allowed(refitted(best));
      const Vf lost = error(tried);
      const Vi better = lost < least;
      best = {choose(better, tried.d, best.d), choose(better, tried.m, best.m)};
      least = choose(better, lost, least);
    }
    return best;
  }
};

// To 16 bits.
ENGINE_INLINE Vf coarse(Vf x) {
  const Vi bits = bit_cast<Vi>(x);
  return bit_cast<Vf>((bits + 0x7f + (bits >> 8 & 1)) & ~0xff);
}

// The integers by which those of the row are multiplied: of the nearest and of those beside them, the best.
ENGINE_INLINE Vf limited(Vf integer) { return clamp(integer, 0, kStepsOfRow); }
ENGINE_INLINE Vf nearest(Vf number, Vf step) { return limited(rounded(choose(step != 0, number / step, Vf{}))); }
ENGINE_INLINE Numbers times(Numbers row, Numbers integers) { return {row.d * integers.d, -(row.m * integers.m)}; }
ENGINE_INLINE Numbers best_integers(const Group& group, Numbers wanted, Numbers row) {
  const Vf d = nearest(wanted.d, row.d), m = nearest(Vf{} - wanted.m, row.m);
  Numbers tried[9];
  for (int i = 0; i < 9; ++i) tried[i] = {limited(d + float(i / 3 - 1)), limited(m + float(i % 3 - 1))};
  return group.best_of(tried, 4, [&](Numbers integers) { return times(row, integers); });
}

// Up to kLanes rows: d and m, then integers for both of every group, then codes.
void quantize_rows(Group& group, const float* x, const float* importance, int64_t rows, int64_t columns, uint8_t* out) {
  const int64_t groups = columns / kWeights, row_bytes = 8 + 2 * groups + columns;
  std::vector<Numbers> wanted(groups);
  Numbers row{};
  for (int64_t g = 0; g < groups; ++g) {
    group.read(x + g * kWeights, rows, columns);
    group.importance = importance + g * kWeights;
    wanted[g] = group.best();
    row = {max(row.d, wanted[g].d), max(row.m, Vf{} - wanted[g].m)};
  }
  row = {coarse(row.d / kStepsOfRow), coarse(row.m / kStepsOfRow)};
  for (int64_t lane = 0; lane < rows; ++lane) {
    const float numbers[2] = {row.d[lane], row.m[lane]};
    std::memcpy(out + lane * row_bytes, numbers, sizeof(numbers));
  }
  for (int64_t g = 0; g < groups; ++g) {
    group.read(x + g * kWeights, rows, columns);
    group.importance = importance + g * kWeights;
    const Numbers best = best_integers(group, wanted[g], row);
    const Vi d = round_to_int(best.d), m = round_to_int(best.m);
    for (int64_t lane = 0; lane < rows; ++lane) {
      out[lane * row_bytes + 8 + g] = uint8_t(d[lane]);
      out[lane * row_bytes + 8 + groups + g] = uint8_t(m[lane]);
    }
    group.write_codes(times(row, best), out + 8 + 2 * groups + g * kWeights, rows, row_bytes);
  }
}

}  // namespace
}  // namespace engine

// x [rows, columns] and importance [columns] -> out [rows, 8 + columns / 32 * 34]: d and m in float32, integers and codes of so many bits.
extern "C" __attribute__((visibility("default"))) void engine_quantize(const float* x, const float* importance, int64_t rows,
                                                                       int64_t columns, int32_t bits, uint8_t* out) {
  using namespace engine;
  const int64_t row_bytes = 8 + columns / kWeights * (2 + kWeights);
  Group group{.top = float((1 << bits) - 1)};
  for (int64_t row = 0; row < rows; row += kLanes, x += kLanes * columns, out += kLanes * row_bytes)
    quantize_rows(group, x, importance, rows - row < kLanes ? rows - row : kLanes, columns, out);
}

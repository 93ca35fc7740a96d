// Float weights to codes with a scale and a minimum for each block: what linear/quantize.py says, to the same bytes, and fast.
//
// A lane of a vector is a row, so the order of every sum is that of the weights, whatever the vectors' width.
#include <cstdint>

#include "../cpu/simd.h"

namespace engine {
namespace {

constexpr int kMostWeights = 64;    // of a block
constexpr int kSteps = 6;           // by which either end of the range is drawn in
constexpr int kMostSteps = 7;       // of both ends together
constexpr float kStep = 1.0f / 24;  // of the range
constexpr int kRefits = 3;

ENGINE_INLINE Vf choose(Vi which, Vf yes, Vf no) { return bit_cast<Vf>((which & bit_cast<Vi>(yes)) | (~which & bit_cast<Vi>(no))); }
ENGINE_INLINE Vf inverse(Vf d) { return choose(d != 0, 1.0f / d, Vf{}); }

// To even; for numbers below 2^22 in size.
ENGINE_INLINE Vf rounded(Vf x) {
  const Vf shift = splat(0x1.8p23f);
  return (x + shift) - shift;
}

struct Halves {
  Half lanes[kLanes];
};
ENGINE_INLINE Halves to_halves(Vf x) {
  Halves result;
  for (int lane = 0; lane < kLanes; ++lane) result.lanes[lane] = {bit_cast<uint16_t>(_Float16(x[lane]))};
  return result;
}
ENGINE_INLINE Vf as_half(Vf x) { return load(to_halves(x).lanes); }

// Value = d * code + m.
struct Numbers {
  Vf d, m;
};

// The same block of kLanes rows.
struct Block {
  int size;
  float top;                // the largest code
  const float* importance;  // of every weight
  Vf x[kMostWeights];

  ENGINE_INLINE Vf code(int k, Vf inverse_d, Vf m) const { return rounded(clamp((x[k] - m) * inverse_d, 0, top)); }

  ENGINE_INLINE Vf error(Numbers at) const {
    const Vf inverse_d = inverse(at.d);
    Vf sum{};
    for (int k = 0; k < size; ++k) {
      const Vf off = code(k, inverse_d, at.m) * at.d - (x[k] - at.m);
      sum = sum + off * off * importance[k];
    }
    return sum;
  }

  // The best of those ranges that leave out a part at either end.
  ENGINE_INLINE Numbers clipped() const {
    Vf low = x[0], high = x[0];
    for (int k = 1; k < size; ++k) low = x[k] < low ? x[k] : low, high = x[k] > high ? x[k] : high;
    const Vf range = high - low;
    Numbers best{range / top, low};
    Vf least = error(best);
    for (int below = 0; below < kSteps; ++below)
      for (int above = 0; above < kSteps && below + above <= kMostSteps; ++above) {
        const Vf m = low + range * (below * kStep);
        const Numbers tried{(high - range * (above * kStep) - m) / top, m};
        const Vf lost = error(tried);
        const Vi better = lost < least;
        best = {choose(better, tried.d, best.d), choose(better, tried.m, best.m)};
        least = choose(better, lost, least);
      }
    return best;
  }

  // What least squares gives for the codes of `at`.
  ENGINE_INLINE Numbers refitted(Numbers at) const {
    const Vf inverse_d = inverse(at.d);
    Vf weights{}, codes{}, squares{}, sum{}, products{};
    for (int k = 0; k < size; ++k) {
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
    const Numbers found = clipped();
    Numbers best{as_half(found.d), as_half(found.m)};
    Vf least = error(best);
    for (int i = 0; i < kRefits; ++i) {
      const Numbers fitted = refitted(best), tried{as_half(fitted.d), as_half(fitted.m)};
      const Vf lost = error(tried);
      const Vi better = lost < least;
      best = {choose(better, tried.d, best.d), choose(better, tried.m, best.m)};
      least = choose(better, lost, least);
    }
    return best;
  }
};

// The blocks of up to kLanes rows.
void quantize_rows(const float* x, const float* importance, int64_t rows, int64_t columns, int bits, int size, uint8_t* out) {
  const int64_t block_bytes = 4 + size, row_bytes = columns / size * block_bytes;
  Block block{.size = size, .top = float((1 << bits) - 1)};
  for (int64_t column = 0; column < columns; column += size, out += block_bytes) {
    for (int lane = 0; lane < kLanes; ++lane)
      for (int k = 0; k < size; ++k) block.x[k][lane] = lane < rows ? x[lane * columns + column + k] : 0;
    block.importance = importance + column;
    const Numbers best = block.best();
    const Halves d = to_halves(best.d), m = to_halves(best.m);
    const Vf inverse_d = inverse(best.d);
    for (int64_t lane = 0; lane < rows; ++lane) {
      std::memcpy(out + lane * row_bytes, &d.lanes[lane], 2);
      std::memcpy(out + lane * row_bytes + 2, &m.lanes[lane], 2);
    }
    for (int k = 0; k < size; ++k) {
      const Vi code = round_to_int(block.code(k, inverse_d, best.m));
      for (int64_t lane = 0; lane < rows; ++lane) out[lane * row_bytes + 4 + k] = uint8_t(code[lane]);
    }
  }
}

}  // namespace
}  // namespace engine

// x [rows, columns] and importance [columns] -> out [rows, columns / size, 4 + size]: d and m in float16, and codes of `bits`.
extern "C" __attribute__((visibility("default"))) void engine_quantize(const float* x, const float* importance, int64_t rows,
                                                                       int64_t columns, int32_t bits, int32_t size, uint8_t* out) {
  using engine::kLanes;
  for (int64_t row = 0; row < rows; row += kLanes)
    engine::quantize_rows(x + row * columns, importance, rows - row < kLanes ? rows - row : kLanes, columns, bits, size,
                          out + row * (columns / size * (4 + size)));
}

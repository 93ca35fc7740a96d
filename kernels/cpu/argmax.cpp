// The token of each sequence that is sampled greedily, straight from the logits where they lie.

#include "op.h"
#include "runtime_interface.h"
#include "simd.h"

namespace engine {
namespace {

constexpr int64_t kRun = 4 * kLanes;

// Of `count` finite logits the index of the largest, the lowest of equals. -1 if one is NaN or the largest is infinite.
int32_t argmax(const float* logits, int64_t count) {
  Vf most[4];
  Vi unordered{};
  std::fill_n(most, 4, splat(-INFINITY));
  int64_t i = 0;
  for (; i + kRun <= count; i += kRun)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Vf x = load(logits + i + v * kLanes);
      most[v] = max(x, most[v]);
      unordered |= x != x;
    }
  float largest = reduce_max(max(max(most[0], most[1]), max(most[2], most[3])));
  bool nan = reduce_max(-unordered) != 0;
  for (; i < count; ++i) largest = std::max(largest, logits[i]), nan |= std::isnan(logits[i]);
  if (nan || std::isinf(largest)) return -1;
  for (i = 0; i + kLanes <= count && reduce_max(-(load(logits + i) == splat(largest))) == 0;) i += kLanes;
  while (logits[i] != largest) ++i;
  return int32_t(i);
}

}  // namespace
}  // namespace engine

// logits: [rows, vocab] float32; row: the `count` rows that are wanted. index: [count]
ENGINE_C void engine_argmax(const float* logits, int64_t vocab, const int32_t* row, int64_t count, int32_t* index) {
  engine::parallel_for(count, 1, engine::threads_for(count * vocab), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) index[i] = engine::argmax(logits + row[i] * vocab, vocab);
  });
}

ENGINE_FOR_RUNTIME(engine_argmax);

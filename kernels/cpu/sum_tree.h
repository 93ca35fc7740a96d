// The order in which every linear adds its K: eight leaves, each in order, that meet as
// ((0+1)+(2+3))+((4+5)+(6+7)).
//
// Of B blocks (groups of 32 where the format has no larger ones), leaf i has those from B*i/8 on. That
// depends on the format and K alone: not on the number of rows, the instruction set or the threads, nor
// on how K is shared out, as long as each share is whole leaves.
#pragma once

#include "simd.h"

namespace engine {

constexpr int kLeaves = 8;
constexpr int kLevels = 3;  // of the tree

constexpr int64_t leaf_begin(int64_t blocks, int leaf) { return blocks * leaf / kLeaves; }

// How many sums a leaf meets: one for each level of the tree that it completes.
constexpr int sums_met(int leaf) {
  int level = 0;
  while (leaf >> level & 1) ++level;
  return level;
}

// Sums of `Count` vectors that wait for their neighbours.
template <int Count>
struct SumTree {
  Vf waiting[kLevels][Count];

  // Of leaves in order. `sum` is the leaf's, and after the last one the whole.
  ENGINE_INLINE void add(int leaf, Vf (&sum)[Count]) {
    const int met = sums_met(leaf);
    for (int level = 0; level < met; ++level)
#pragma GCC unroll 16
      for (int i = 0; i < Count; ++i) sum[i] = waiting[level][i] + sum[i];
    if (met < kLevels)
#pragma GCC unroll 16
      for (int i = 0; i < Count; ++i) waiting[met][i] = sum[i];
  }
};

}  // namespace engine

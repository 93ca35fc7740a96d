// What this machine can do at most: how fast its threads read memory and how fast they multiply.
// Kernels are compared with that (`engine bench kernels`), so it is measured with the vectors and
// the instructions that they use. Plain C functions, called through ctypes; bench/limits.py compiles
// this file alone, for the target of the artifact that is measured.

#include <algorithm>
#include <chrono>

#include "../kernels/cpu/dot.h"
#include "../kernels/cpu/products.h"
#include "../kernels/cpu/team.h"

#define ENGINE_LIMIT extern "C" __attribute__((visibility("default"))) double

namespace engine {
namespace {

// The compiler must believe that the value is used and has changed, and keep it in a register.
template <class Vector>
ENGINE_INLINE void touch(Vector& value) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(value));
#else
  asm volatile("" : "+m"(value));
#endif
}

// Seconds of the quickest of several passes: the others were disturbed.
template <class Pass>
double best_seconds(int passes, const Pass& pass) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30;
  for (int i = 0; i < passes; ++i) {
    const auto start = Clock::now();
    pass();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

constexpr int64_t kChunk = int64_t{1} << 20;  // bytes that a thread takes at a time
constexpr int kVectorsPerLine = 64 / int(sizeof(Vi));

// Reads a chunk as that many streams side by side, a cache line of each in turn.
template <int Streams>
void read_chunk(const uint8_t* from) {
  constexpr int64_t kStream = kChunk / Streams;
  Vi seen[Streams][kVectorsPerLine] = {};
  for (int64_t at = 0; at < kStream; at += 64)
#pragma GCC unroll 8
    for (int s = 0; s < Streams; ++s)
#pragma GCC unroll 4
      for (int v = 0; v < kVectorsPerLine; ++v) seen[s][v] |= load_vector<Vi>(from + s * kStream + at + v * int(sizeof(Vi)));
  for (auto& stream : seen)
    for (auto& value : stream) touch(value);
}

template <int Streams>
double read_seconds(const uint8_t* buffer, int64_t chunks, int threads, int passes) {
  return best_seconds(passes, [&] {
    parallel_for(chunks, 1, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) read_chunk<Streams>(buffer + i * kChunk);
    });
  });
}

constexpr int kTurns = 4096;
constexpr int64_t kTasksPerThread = 64;

// kSums: enough that none has to wait for its own last addition (4 to 5 cycles where the product is
// part of it, on two units), few enough for the registers.
struct Int8Sum {
  typedef Vb Operand;
#if defined(ENGINE_VNNI)
  static constexpr int kSums = 12;
#else
  static constexpr int kSums = 8;
#endif
  static constexpr int kMultiplyAdds = 4 * kLanes;
  static Operand operand(int i) { return Vb{} + uint8_t(1 + i); }
#if defined(ENGINE_PAIRS)
  ENGINE_INLINE void add(Operand a, Operand b) { sum = add_pairs(sum, multiply_pairs(a, b)), touch(sum); }
  Vs sum{};
#else
  ENGINE_INLINE void add(Operand a, Operand b) { sum = add_products(sum, a, b), touch(sum); }
  Vi sum{};
#endif
  ENGINE_INLINE void use() { touch(sum); }
};

struct Float32Sum {
  typedef Vf Operand;
  static constexpr int kSums = 12;
  static constexpr int kMultiplyAdds = kLanes;
  static Operand operand(int i) { return splat(1e-3f * float(1 + i)); }
  ENGINE_INLINE void add(Operand a, Operand b) { sum = fma(a, b, sum); }
  ENGINE_INLINE void use() { touch(sum); }
  Vf sum{};
};

// Pairs; where no instruction multiplies them, as two float32 products each.
struct BFloat16Sum {
  typedef Vi Operand;
  static constexpr int kSums = 12;
  static constexpr int kMultiplyAdds = 2 * kLanes;
  static Operand operand(int i) { return splat(0x3a803a80 + i); }
  ENGINE_INLINE void add(Operand a, Operand b) {
#if defined(ENGINE_BF16)
    sum = add_product(sum, a, b);
#else
    for (int i = 0; i < 2; ++i) sum = fma(bit_cast<Vf>(a), bit_cast<Vf>(b), sum), touch(sum);
#endif
  }
  ENGINE_INLINE void use() { touch(sum); }
  Vf sum{};
};

// Operands change at every turn, as far as the compiler knows: products must not be computed once.
template <class Sum>
void multiply() {
  typename Sum::Operand a[2] = {Sum::operand(0), Sum::operand(1)}, b[2] = {Sum::operand(2), Sum::operand(3)};
  Sum sums[Sum::kSums];
  for (int turn = 0; turn < kTurns; ++turn) {
#pragma GCC unroll 16
    for (int i = 0; i < Sum::kSums; ++i) {
      if (i % 4 == 0) touch(a[0]), touch(a[1]);
      sums[i].add(a[i % 2], b[i / 2 % 2]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Sum::kSums; ++i) sums[i].use();
}

template <class Sum>
double multiply_adds_per_second(int threads, int passes) {
  const int64_t tasks = kTasksPerThread * threads;
  const double seconds = best_seconds(passes, [&] {
    parallel_for(tasks, 1, threads, [](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) multiply<Sum>();
    });
  });
  return double(tasks) * kTurns * Sum::kSums * Sum::kMultiplyAdds / seconds;
}

}  // namespace
}  // namespace engine

// Bytes per second at which `threads` threads read `bytes` at `buffer`; it should be far larger than
// the last cache, and its pages must have been written. The best of several ways to walk through it.
ENGINE_LIMIT engine_limit_read(const uint8_t* buffer, int64_t bytes, int threads, int passes) {
  using namespace engine;
  const int64_t chunks = bytes / kChunk;
  const double seconds = std::min({read_seconds<1>(buffer, chunks, threads, passes), read_seconds<2>(buffer, chunks, threads, passes),
                                   read_seconds<4>(buffer, chunks, threads, passes), read_seconds<8>(buffer, chunks, threads, passes)});
  return double(chunks * kChunk) / seconds;
}

// Multiply-adds per second of bytes, with the instructions that dot.h has for 4-bit weights.
ENGINE_LIMIT engine_limit_int8(int threads, int passes) { return engine::multiply_adds_per_second<engine::Int8Sum>(threads, passes); }

// Multiply-adds per second of bfloat16 numbers, in pairs.
ENGINE_LIMIT engine_limit_bfloat16(int threads, int passes) { return engine::multiply_adds_per_second<engine::BFloat16Sum>(threads, passes); }

// Multiply-adds per second of float32 numbers.
ENGINE_LIMIT engine_limit_float32(int threads, int passes) { return engine::multiply_adds_per_second<engine::Float32Sum>(threads, passes); }

// The threads that share a kernel's work, and never wait for a thread that does not come.
//
// A barrier waits for every thread of a team; on a machine with other work on it, the one that
// was descheduled holds up all the others for milliseconds, hundreds of times per forward. Here
// the caller works through the chunks itself, helpers take chunks while there are any, and at
// the end the caller waits only for chunks that a helper has begun. Which thread computes a
// chunk never shows in the result.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>

namespace engine {

class Team {
 public:
  using Call = void (*)(const void* body, int64_t begin, int64_t end);

  static Team& instance() {
    static Team* team = new Team;  // never destroyed: helpers sleep in it until the process ends
    return *team;
  }

  // Calls call(body, begin, end) for all of [0, count) in chunks of `grain`, on at most `threads`
  // threads. Helpers take chunks from the front, the caller takes them from the back.
  void run(int64_t count, int64_t grain, int threads, Call call, const void* body) {
    if (threads <= 1 || count <= grain || !busy_.try_lock()) return call(body, 0, count);
    for (; helpers_ < threads - 1; ++helpers_) std::thread(&Team::help, this, helpers_).detach();
    call_ = call;
    body_ = body;
    grain_ = grain;
    wanted_ = threads - 1;
    left_ = pack(0, count);
    open_ = true;
    ++epoch_;
    epoch_.notify_all();
    for (Chunk chunk; take(chunk, /*from_back=*/true);) call_(body_, chunk.begin, chunk.end);
    open_ = false;
    while (inside_ != 0) pause();
    busy_.unlock();
  }

  // What helpers bring into their caches while they wait for the next work: they will take the
  // front of it. A step that reads every weight once is bound by memory, which would otherwise
  // rest between two kernels.
  void read_ahead(const void* memory, int64_t bytes) {
    ahead_ = static_cast<const char*>(memory);
    ahead_bytes_ = bytes;
  }

 private:
  // About 50 microseconds: longer than the gaps between the kernels of a forward, so that
  // helpers are awake within one and asleep between two.
  static constexpr int kSpins = 2000;
  static constexpr int64_t kLine = 64;

  struct Chunk {
    int64_t begin, end;
  };
  // The chunks that nobody has taken, as first and last in one word.
  static uint64_t pack(int64_t begin, int64_t end) { return uint64_t(begin) << 32 | uint64_t(end); }

  bool take(Chunk& chunk, bool from_back) {
    uint64_t left = left_;
    for (;;) {
      const int64_t begin = int64_t(left >> 32), end = int64_t(left & 0xffffffff);
      if (begin >= end) return false;
      const int64_t size = std::min(grain_, end - begin);
      chunk = from_back ? Chunk{end - size, end} : Chunk{begin, begin + size};
      if (left_.compare_exchange_weak(left, from_back ? pack(begin, end - size) : pack(begin + size, end))) return true;
    }
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  void help(int index) {
    for (uint32_t seen = 0;;) {
      seen = next_epoch(seen, index);
      // In this order: once the caller has closed the job and seen nobody inside, its fields are free.
      ++inside_;
      if (open_ && index < wanted_)
        for (Chunk chunk; take(chunk, /*from_back=*/false);) call_(body_, chunk.begin, chunk.end);
      --inside_;
    }
  }

  uint32_t next_epoch(uint32_t seen, int index) {
    const char* ahead = ahead_.load(std::memory_order_relaxed) + index * kLine;
    const char* end = ahead + ahead_bytes_.load(std::memory_order_relaxed);
    const int64_t stride = wanted_.load(std::memory_order_relaxed) * kLine;
    for (int spin = 0; spin < kSpins; ++spin) {
      if (epoch_ != seen) return epoch_;
      if (ahead >= end) pause();
      for (int line = 0; line < 4 && ahead < end; ++line, ahead += stride) __builtin_prefetch(ahead, 0, 2);
    }
    epoch_.wait(seen);
    return epoch_;
  }

  std::mutex busy_;  // a second caller at the same time computes alone
  int helpers_ = 0;
  Call call_ = nullptr;
  const void* body_ = nullptr;
  int64_t grain_ = 1;
  std::atomic<int> wanted_ = 0;
  std::atomic<const char*> ahead_ = nullptr;
  std::atomic<int64_t> ahead_bytes_ = 0;
  alignas(64) std::atomic<uint64_t> left_ = 0;
  alignas(64) std::atomic<uint32_t> epoch_ = 0;
  std::atomic<bool> open_ = false;
  alignas(64) std::atomic<int> inside_ = 0;
};

// Threads for a job of that many multiply-adds: waking another one costs a few microseconds.
// As many as OpenMP may use, which program.cpp sets for the thread that runs a step.
inline int threads_for(int64_t work) { return work < 32768 ? 1 : omp_get_max_threads(); }

// Calls body(begin, end) for all of [0, count) in chunks of `grain`.
template <class Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
  if (count > 0)
    Team::instance().run(count, grain, threads, [](const void* it, int64_t begin, int64_t end) { (*static_cast<const Body*>(it))(begin, end); }, &body);
}

}  // namespace engine

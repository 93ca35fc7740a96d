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

  // Calls call(body, begin, end) for all of [0, count) in chunks of `grain`, on at most `threads` threads.
  void run(int64_t count, int64_t grain, int threads, Call call, const void* body) {
    if (threads <= 1 || count <= grain || !busy_.try_lock()) return call(body, 0, count);
    for (; helpers_ < threads - 1; ++helpers_) std::thread(&Team::help, this, helpers_).detach();
    call_ = call;
    body_ = body;
    count_ = count;
    grain_ = grain;
    wanted_ = threads - 1;
    next_ = 0;
    open_ = true;
    ++epoch_;
    epoch_.notify_all();
    work();
    open_ = false;
    while (inside_ != 0) pause();
    busy_.unlock();
  }

 private:
  // About 50 microseconds: longer than the gaps between the kernels of a forward, so that
  // helpers are awake within one and asleep between two.
  static constexpr int kSpins = 2000;

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  void work() {
    for (int64_t begin; (begin = next_.fetch_add(grain_)) < count_;) call_(body_, begin, std::min(begin + grain_, count_));
  }

  void help(int index) {
    for (uint32_t seen = 0;;) {
      seen = next_epoch(seen);
      // In this order: once the caller has closed the job and seen nobody inside, its fields are free.
      ++inside_;
      if (open_ && index < wanted_) work();
      --inside_;
    }
  }

  uint32_t next_epoch(uint32_t seen) {
    for (int spin = 0; spin < kSpins; ++spin, pause())
      if (epoch_ != seen) return epoch_;
    epoch_.wait(seen);
    return epoch_;
  }

  std::mutex busy_;  // a second caller at the same time computes alone
  int helpers_ = 0;
  Call call_ = nullptr;
  const void* body_ = nullptr;
  int64_t count_ = 0, grain_ = 1;
  std::atomic<int> wanted_ = 0;
  alignas(64) std::atomic<int64_t> next_ = 0;
  alignas(64) std::atomic<uint32_t> epoch_ = 0;
  std::atomic<bool> open_ = false;
  alignas(64) std::atomic<int> inside_ = 0;
};

// Threads for a job of that many multiply-adds: waking another one costs a few microseconds.
// torch.set_num_threads says how many there may be.
inline int threads_for(int64_t work) { return work < 32768 ? 1 : omp_get_max_threads(); }

// Calls body(begin, end) for all of [0, count) in chunks of `grain`.
template <class Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
  if (count > 0)
    Team::instance().run(count, grain, threads, [](const void* it, int64_t begin, int64_t end) { (*static_cast<const Body*>(it))(begin, end); }, &body);
}

}  // namespace engine

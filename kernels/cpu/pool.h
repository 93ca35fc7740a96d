// Memory for results. Activations come and go with every call, in sizes that change with every
// step: given back to the system, each costs page faults when it is taken again, more than many a
// kernel; left to malloc, sizes that never repeat tear the heap to pieces.
//
// A free buffer that is large enough is taken again, the smallest of them. If none is, the largest
// free one makes way for a new one: there are never more buffers than tensors were alive at once.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace engine {

class Pool {
 public:
  struct Buffer {
    void* memory;
    size_t bytes;
  };

  static Pool& instance() {
    static Pool* pool = new Pool;  // never destroyed: tensors may outlive whatever static objects there are
    return *pool;
  }

  // At least `bytes`, aligned to 64. Throws std::bad_alloc.
  Buffer take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    auto best = free_.end();
    for (auto at = free_.begin(); at != free_.end(); ++at)
      if (at->bytes >= bytes && (best == free_.end() || at->bytes < best->bytes)) best = at;
    if (best != free_.end()) {
      const Buffer found = *best;
      free_.erase(best);
      return found;
    }
    if (!free_.empty()) {
      const auto largest = std::max_element(free_.begin(), free_.end(), [](const Buffer& a, const Buffer& b) { return a.bytes < b.bytes; });
      std::free(largest->memory);
      free_.erase(largest);
    }
    const size_t rounded = (std::max<size_t>(bytes, 1) + kRounding - 1) / kRounding * kRounding;
    void* memory = std::aligned_alloc(64, rounded);
    if (memory == nullptr) throw std::bad_alloc();
    return {memory, rounded};
  }

  void give(Buffer buffer) {
    const std::lock_guard lock(mutex_);
    free_.push_back(buffer);
  }

 private:
  static constexpr size_t kRounding = 4096;

  std::mutex mutex_;
  std::vector<Buffer> free_;
};

}  // namespace engine

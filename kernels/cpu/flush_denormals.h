// Numbers below 2^-126 as zeros, read and written, as long as this lives: what vpdpbf16ps always does, of every
// float32 operation of this thread.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace engine {

class FlushDenormals {
 public:
#if defined(__x86_64__)
  explicit FlushDenormals(bool wanted) : before_(_mm_getcsr()) {
    if (wanted) _mm_setcsr(before_ | kFlushResults | kFlushOperands);
  }
  ~FlushDenormals() { _mm_setcsr(before_); }
#else
  explicit FlushDenormals(bool) {}
#endif
  FlushDenormals(const FlushDenormals&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr unsigned kFlushResults = 0x8000, kFlushOperands = 0x0040;

  unsigned before_;
#endif
};

}  // namespace engine

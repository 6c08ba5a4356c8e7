// Asks for memory that will be read soon, a piece at a time between pieces of other work. The data of
// one slot is short: by the time the hardware sees a stream, much of it has been waited for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace graftwork {

constexpr int64_t kCacheLine = 64;

// GCC takes a function that does nothing but __builtin_prefetch for one without effects, and leaves
// out calls of it.
inline void prefetch(const void* p) {
#if defined(__x86_64__)
  asm volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(p)));
#else
  __builtin_prefetch(p);
#endif
}

// Asks for `count` lines from p on. Past the end of what is there it is harmless, and cheaper than
// looking where the end is.
template <int count>
inline void prefetch_lines(const char* p) {
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) __builtin_prefetch(p + i * kCacheLine);
}

// Memory that will be read soon, in blocks: a loop that computes something else takes one after the
// other and asks for a line of it at each turn. All lines of a block at once would have to wait for
// each other as if they were read.
class BlocksAhead {
 public:
  static constexpr int64_t kBytes = 1024;
  alignas(kCacheLine) static constexpr char kNothing[kBytes] = {};

  void clear() { blocks_.clear(), taken_ = 0; }

  void add(const char* data, int64_t bytes) {
    for (const char* end = data + bytes; data < end; data += kBytes) blocks_.push_back(data);
  }

  // At the end one that is in the caches: asking for what is mapped nowhere takes long.
  const char* take() { return taken_ < blocks_.size() ? blocks_[taken_++] : kNothing; }

 private:
  std::vector<const char*> blocks_;
  size_t taken_ = 0;
};

class Ahead {
 public:
  Ahead(const void* data, int64_t bytes)
      : next_(static_cast<const char*>(data)), end_(next_ + bytes) {}

  // The next `steps` calls of step() ask for all that is left.
  void spread(int64_t steps) {
    const int64_t lines = (end_ - next_ + kCacheLine - 1) / kCacheLine;
    piece_ = (lines + steps - 1) / std::max<int64_t>(steps, 1) * kCacheLine;
  }

  void step() {
    const char* stop = std::min(next_ + piece_, end_);
    for (; next_ < stop; next_ += kCacheLine) prefetch(next_);
  }

 private:
  const char* next_;
  const char* end_;
  int64_t piece_ = 0;
};

}  // namespace graftwork

// Asks for memory that will be read soon, a piece at a time between pieces of other work. The data of
// one slot is short: by the time the hardware sees a stream, much of it has been waited for.
#pragma once

#include <algorithm>
#include <cstdint>

namespace graftwork {

class Ahead {
 public:
  Ahead(const void* data, int64_t bytes)
      : next_(static_cast<const char*>(data)), end_(next_ + bytes) {}

  // The next `steps` calls of step() ask for all that is left.
  void spread(int64_t steps) {
    const int64_t lines = (end_ - next_ + kLine - 1) / kLine;
    piece_ = (lines + steps - 1) / std::max<int64_t>(steps, 1) * kLine;
  }

  void step() {
    const char* stop = std::min(next_ + piece_, end_);
    for (; next_ < stop; next_ += kLine) __builtin_prefetch(next_);
  }

 private:
  static constexpr int64_t kLine = 64;

  const char* next_;
  const char* end_;
  int64_t piece_ = 0;
};

}  // namespace graftwork

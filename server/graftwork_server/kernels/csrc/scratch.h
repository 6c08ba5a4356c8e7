// Working memory of a thread, kept between calls.
#pragma once

#include <cstdint>
#include <vector>

namespace graftwork {

// At least `count` floats, of undefined contents; one caller at a time for each kIndex.
template <int kIndex>
inline float* scratch(int64_t count) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < count) memory.resize(count);
  return memory.data();
}

constexpr int64_t kWidest = 16;  // lanes of the widest vectors; layouts are padded to it

inline int64_t pad(int64_t count) { return (count + kWidest - 1) / kWidest * kWidest; }

}  // namespace graftwork

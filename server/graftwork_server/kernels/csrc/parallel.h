// Sharing of work between threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

namespace graftwork {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls run(begin, end) for chunks of [0, count). Threads take the next chunk when they are free:
// chunks differ in length, and a core may be busy with something else.
template <class Run>
void for_each_chunk(int64_t count, int64_t chunk, const Run& run) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), divide_up(count, chunk));
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i = next.fetch_add(chunk); i < count; i = next.fetch_add(chunk))
      run(i, std::min(i + chunk, count));
  });
}

}  // namespace graftwork

// Reductions of rows of logits. Every row is reduced in one order, whatever the rows beside it.
#pragma once

#include <cmath>
#include <limits>

#include "parallel.h"
#include "simd.h"

namespace graftwork {

// The largest value, and the first place where it stands; the first NaN where there is any.
inline void peak_of_row(const float* x, int64_t count, float* value, int64_t* place) {
  Vec most = splat(-std::numeric_limits<float>::infinity());
  IntVec where{}, lanes, unordered{};
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec v = load(x + i);
    const IntVec larger = v > most;
    most = larger ? v : most;
    where = larger ? lanes + static_cast<int32_t>(i) : where;
    unordered |= v != v;
  }
  // A lane that met only -inf names its first column, which is as good as any of them.
  int64_t best = 0;
  float largest = -std::numeric_limits<float>::infinity();
  bool has_nan = false;
  for (int lane = 0; lane < kLanes; ++lane) {
    has_nan |= unordered[lane] != 0;
    if (most[lane] > largest || (most[lane] == largest && where[lane] < best))
      largest = most[lane], best = where[lane];
  }
  for (; i < count; ++i) {
    has_nan |= x[i] != x[i];
    if (x[i] > largest) largest = x[i], best = i;
  }
  if (has_nan)
    for (best = 0; x[best] == x[best];) ++best;
  *value = has_nan ? x[best] : largest;
  *place = best;
}

// log(sum(exp(x))); x: finite, or -inf.
inline float logsumexp_of_row(const float* x, int64_t count) {
  float peak;
  int64_t place;
  peak_of_row(x, count, &peak, &place);
  if (!std::isfinite(peak)) return peak;
  Vec total{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) total += exp(load(x + i) - splat(peak));
  float rest = 0.0f;
  for (; i < count; ++i) rest += std::exp(x[i] - peak);
  return peak + std::log(sum(total) + rest);
}

inline void row_peaks(const float* x, int64_t rows, int64_t count, float* values, int64_t* places) {
  for_each_chunk(rows, 1, [&](int64_t row, int64_t) {
    peak_of_row(x + row * count, count, values + row, places + row);
  });
}

inline void row_logsumexp(const float* x, int64_t rows, int64_t count, float* y) {
  for_each_chunk(rows, 1,
                 [&](int64_t row, int64_t) { y[row] = logsumexp_of_row(x + row * count, count); });
}

}  // namespace graftwork

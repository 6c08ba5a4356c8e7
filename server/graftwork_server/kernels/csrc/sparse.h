// y += x D^T, D sparse. Sixteen rows of D of about equal length go side by side; each holds its
// values and, for each, the distance from the column before, in a byte.
//
// An output is one chain of fused multiply-adds over its columns ascending, whether x is gathered
// from (few rows) or turned around so that rows lie side by side (many).
#pragma once

#include <algorithm>

#include "scratch.h"
#include "term.h"
#include "simd.h"

namespace graftwork {

struct Sparse {
  const void* values;      // bundle by bundle, (length, 16)
  const uint8_t* gaps;     // the same; a zero value fills a gap that a byte cannot hold
  const int32_t* lengths;  // (bundles,)
  const int32_t* outputs;  // (bundles, 16): which row of D, -1: none
  int64_t bundles, in_features, bfloat16;
};

constexpr int kBundle = 16;
constexpr int kParts = kBundle / kLanes;

// One row of x: bundle sums into `sums`.
template <class T>
inline void gather_bundle(const T* values, const uint8_t* gaps, int64_t length, const float* x,
                          float* sums) {
  for (int part = 0; part < kParts; ++part) {
    Vec acc{};
    IntVec column{};
    for (int64_t k = 0; k < length; ++k) {
      const int64_t at = k * kBundle + part * kLanes;
      column += load_indices(gaps + at);
      acc = fma(gather(x, column), load(values + at), acc);
    }
    store(sums + part * kLanes, acc);
  }
}

// kLanes rows of x, turned around: (in_features, kLanes); sums: (16, kLanes).
template <class T>
inline void broadcast_bundle(const T* values, const uint8_t* gaps, int64_t length,
                             const float* turned, float* sums) {
  for (int lane = 0; lane < kBundle; lane += 8) {
    Vec acc[8] = {};
    int64_t column[8] = {};
    for (int64_t k = 0; k < length; ++k)
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        column[i] += gaps[k * kBundle + lane + i];
        acc[i] = fma(load(turned + column[i] * kLanes), to_float(values[k * kBundle + lane + i]),
                     acc[i]);
      }
    for (int i = 0; i < 8; ++i) store(sums + (lane + i) * kLanes, acc[i]);
  }
}

template <class T>
void add_sparse_row(const Sparse& d, const float* x, float* y, Ahead& ahead) {
  const T* values = static_cast<const T*>(d.values);
  const uint8_t* gaps = d.gaps;
  float sums[kBundle];
  for (int64_t bundle = 0; bundle < d.bundles; ++bundle) {
    ahead.step();
    gather_bundle(values, gaps, d.lengths[bundle], x, sums);
    for (int i = 0; i < kBundle; ++i) {
      const int32_t output = d.outputs[bundle * kBundle + i];
      if (output >= 0) y[output] += sums[i];
    }
    values += d.lengths[bundle] * kBundle;
    gaps += d.lengths[bundle] * kBundle;
  }
}

template <class T>
void add_sparse_rows(const Sparse& d, const TermRows& rows, Ahead& ahead) {
  const T* values = static_cast<const T*>(d.values);
  const uint8_t* gaps = d.gaps;
  float* turned = scratch<0>(d.in_features * kLanes);
  for (int64_t i = 0; i < d.in_features; ++i)
    for (int64_t r = 0; r < kLanes; ++r)
      turned[i * kLanes + r] = r < rows.rows ? rows.x[r * rows.x_stride + i] : 0.0f;
  float sums[kBundle * kLanes];
  for (int64_t bundle = 0; bundle < d.bundles; ++bundle) {
    ahead.step();
    broadcast_bundle(values, gaps, d.lengths[bundle], turned, sums);
    for (int i = 0; i < kBundle; ++i) {
      const int32_t output = d.outputs[bundle * kBundle + i];
      if (output < 0) continue;
      for (int64_t r = 0; r < rows.rows; ++r)
        rows.y[r * rows.y_stride + output] += sums[i * kLanes + r];
    }
    values += d.lengths[bundle] * kBundle;
    gaps += d.lengths[bundle] * kBundle;
  }
}

template <class T>
void add_sparse(const Sparse& d, TermRows rows, Ahead& ahead) {
  ahead.spread(d.bundles);
  while (rows.rows > 0) {
    TermRows some = rows;
    some.rows = std::min<int64_t>(rows.rows, kLanes);
    if (some.rows < 3) {
      for (int64_t r = 0; r < some.rows; ++r)
        add_sparse_row<T>(d, some.x + r * some.x_stride, some.y + r * some.y_stride,
                          ahead);
    } else {
      add_sparse_rows<T>(d, some, ahead);
    }
    rows.rows -= some.rows;
    rows.x += some.rows * rows.x_stride;
    rows.y += some.rows * rows.y_stride;
  }
}

inline void add_sparse(const Sparse& d, const TermRows& rows, Ahead& ahead) {
  if (d.bfloat16)
    add_sparse<BFloat16>(d, rows, ahead);
  else
    add_sparse<float>(d, rows, ahead);
}

}  // namespace graftwork

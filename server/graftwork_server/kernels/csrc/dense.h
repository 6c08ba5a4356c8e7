// y += x D^T, D in panels of 32 outputs.
#pragma once

#include <algorithm>

#include "scratch.h"
#include "term.h"
#include "tile.h"

namespace graftwork {

struct Dense {
  const float* panels;  // (ceil(out_features / 32), in_features, 32)
  int64_t in_features, out_features;
};

inline void add_dense(const Dense& d, const TermRows& rows, Ahead& ahead) {
  constexpr int64_t kWidth = 32;
  float* added = scratch<0>(rows.rows * kWidth);
  ahead.spread((d.out_features + kWidth - 1) / kWidth);
  for (int64_t first = 0; first < d.out_features; first += kWidth) {
    ahead.step();
    std::fill(added, added + rows.rows * kWidth, 0.0f);
    multiply(rows.rows, d.in_features, kWidth, rows.x, rows.x_stride,
             d.panels + first * d.in_features, kWidth, added, kWidth);
    for (int64_t row = 0; row < rows.rows; ++row)
      add_to(rows.y + row * rows.y_stride + first, added + row * kWidth,
             std::min(kWidth, d.out_features - first));
  }
}

}  // namespace graftwork

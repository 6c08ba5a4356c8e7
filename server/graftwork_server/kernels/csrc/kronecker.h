// y += x kron(left, right)^T: two small products for each row, in the cheaper order.
#pragma once

#include <algorithm>

#include "scratch.h"
#include "term.h"
#include "tile.h"

namespace graftwork {

struct Kronecker {
  const float* left;   // (a, c)
  const float* right;  // (d, pad(b)): transposed
  int64_t a, c, b, d;
  int64_t right_first;
};

inline void add_kronecker(const Kronecker& k, const TermRows& rows, Ahead& ahead) {
  const int64_t b = pad(k.b), d = pad(k.d);
  const int64_t between = std::max(k.c * b, k.a * d);
  float* middle = scratch<0>(between + k.a * b + k.c * d);
  float* out = middle + between;
  float* grid = out + k.a * b;
  ahead.spread(rows.rows);
  for (int64_t row = 0; row < rows.rows; ++row) {
    ahead.step();
    const float* x = rows.x + row * rows.x_stride;
    float* y = rows.y + row * rows.y_stride;
    std::fill(middle, grid, 0.0f);
    if (k.right_first) {
      multiply(k.c, k.d, b, x, k.d, k.right, b, middle, b);
      multiply(k.a, k.c, b, k.left, k.c, middle, b, out, b);
    } else {
      for (int64_t i = 0; i < k.c; ++i) {
        std::copy(x + i * k.d, x + (i + 1) * k.d, grid + i * d);
        std::fill(grid + i * d + k.d, grid + (i + 1) * d, 0.0f);
      }
      multiply(k.a, k.c, d, k.left, k.c, grid, d, middle, d);
      multiply(k.a, k.d, b, middle, d, k.right, b, out, b);
    }
    for (int64_t i = 0; i < k.a; ++i) add_to(y + i * k.b, out + i * b, k.b);
  }
}

}  // namespace graftwork

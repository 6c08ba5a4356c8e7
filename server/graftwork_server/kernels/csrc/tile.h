// c += a b for small blocks that live in the first cache levels.
//
// Every element of c is one chain of fused multiply-adds over k ascending, whatever the shape of
// the tile that computes it. That is what makes a row's bits independent of the rows around it.
#pragma once

#include <algorithm>

#include "simd.h"

namespace graftwork {

// c: (kRows, kVecs * kLanes), a: (kRows, depth) scalars, b: (depth, kVecs * kLanes).
template <int kRows, int kVecs, class B>
inline void multiply_tile(int64_t depth, const float* a, int64_t a_stride, const B* b,
                          int64_t b_stride, float* c, int64_t c_stride) {
  Vec acc[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) acc[r][v] = load(c + r * c_stride + v * kLanes);
  for (int64_t k = 0; k < depth; ++k) {
    Vec row[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) row[v] = load(b + k * b_stride + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const float x = a[r * a_stride + k];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) acc[r][v] = fma(row[v], x, acc[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) store(c + r * c_stride + v * kLanes, acc[r][v]);
}

template <int kRows, int kVecs, class B>
inline void multiply_rows(int64_t rows, int64_t depth, const float* a, int64_t a_stride,
                          const B* b, int64_t b_stride, float* c, int64_t c_stride) {
  if (rows == kRows) {
    multiply_tile<kRows, kVecs>(depth, a, a_stride, b, b_stride, c, c_stride);
  } else if constexpr (kRows > 1) {
    multiply_rows<kRows - 1, kVecs>(rows, depth, a, a_stride, b, b_stride, c, c_stride);
  }
}

// c: (rows, width), width a multiple of kLanes; b: float or BFloat16. Rows are cut into tiles of
// nearly equal height.
template <class B>
inline void multiply(int64_t rows, int64_t depth, int64_t width, const float* a, int64_t a_stride,
                     const B* b, int64_t b_stride, float* c, int64_t c_stride) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t height = (rows + tiles - 1) / tiles;
  for (int64_t r = 0; r < rows; r += height) {
    const int64_t n = std::min(height, rows - r);
    int64_t column = 0;
    if (n <= kTileRows / 2)
      for (; column + 4 * kLanes <= width; column += 4 * kLanes)
        multiply_rows<kTileRows / 2, 4>(n, depth, a + r * a_stride, a_stride, b + column, b_stride,
                                        c + r * c_stride + column, c_stride);
    for (; column + 2 * kLanes <= width; column += 2 * kLanes)
      multiply_rows<kTileRows, 2>(n, depth, a + r * a_stride, a_stride, b + column, b_stride,
                                  c + r * c_stride + column, c_stride);
    if (column < width)
      multiply_rows<kTileRows, 1>(n, depth, a + r * a_stride, a_stride, b + column, b_stride,
                                  c + r * c_stride + column, c_stride);
  }
}

}  // namespace graftwork

// c += a b for small blocks that live in the first cache levels.
//
// Every element of c is one chain of fused multiply-adds over k ascending, whatever the shape of
// the tile that computes it. That is what makes a row's bits independent of the rows around it.
#pragma once

#include <algorithm>

#include "simd.h"

namespace graftwork {

// c: (kRows, kVecs * kLanes), a: (kRows, depth) scalars; b(k, v) is vector v of row k of
// b: (depth, kVecs * kLanes).
template <int kRows, int kVecs, class B>
inline void multiply_tile(int64_t depth, const float* a, int64_t a_stride, const B& b, float* c,
                          int64_t c_stride) {
  Vec acc[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) acc[r][v] = load(c + r * c_stride + v * kLanes);
  for (int64_t k = 0; k < depth; ++k) {
    Vec row[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) row[v] = b(k, v);
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
inline void multiply_rows(int64_t rows, int64_t depth, const float* a, int64_t a_stride, const B& b,
                          float* c, int64_t c_stride) {
  if (rows == kRows) {
    multiply_tile<kRows, kVecs>(depth, a, a_stride, b, c, c_stride);
  } else if constexpr (kRows > 1) {
    multiply_rows<kRows - 1, kVecs>(rows, depth, a, a_stride, b, c, c_stride);
  }
}

// c: (rows, vectors * kLanes); b(k, v) is vector v of row k of b. Rows are cut into tiles of nearly
// equal height.
template <class B>
inline void multiply_vectors(int64_t rows, int64_t depth, int64_t vectors, const float* a,
                             int64_t a_stride, const B& b, float* c, int64_t c_stride) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t height = (rows + tiles - 1) / tiles;
  for (int64_t r = 0; r < rows; r += height) {
    const int64_t n = std::min(height, rows - r);
    int64_t vector = 0;
    const auto multiply_some = [&]<int kRows, int kVecs>() {
      const auto shifted = [&](int64_t k, int v) { return b(k, vector + v); };
      multiply_rows<kRows, kVecs>(n, depth, a + r * a_stride, a_stride, shifted,
                                  c + r * c_stride + vector * kLanes, c_stride);
      vector += kVecs;
    };
    if (n <= kTileRows / 2)
      while (vector + 4 <= vectors) multiply_some.template operator()<kTileRows / 2, 4>();
    while (vector + 2 <= vectors) multiply_some.template operator()<kTileRows, 2>();
    if (vector < vectors) multiply_some.template operator()<kTileRows, 1>();
  }
}

// The same for b that lies row by row, width a multiple of kLanes; b: float or BFloat16.
template <class B>
inline void multiply(int64_t rows, int64_t depth, int64_t width, const float* a, int64_t a_stride,
                     const B* b, int64_t b_stride, float* c, int64_t c_stride) {
  const auto vector = [&](int64_t k, int64_t v) { return load(b + k * b_stride + v * kLanes); };
  multiply_vectors(rows, depth, width / kLanes, a, a_stride, vector, c, c_stride);
}

}  // namespace graftwork

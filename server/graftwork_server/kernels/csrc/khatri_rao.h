// Low-rank pairs whose factors are Khatri-Rao products (LoHa, arXiv:2108.06098), made as they are
// needed: row i * r + j of A is first[i] * second[j], and column i * r + j of B is the product of
// columns i and j of two others. Two times r factors are read for r * r ranks.
#pragma once

#include <algorithm>

#include "ahead.h"
#include "simd.h"

namespace graftwork {

constexpr int64_t kFactorPanel = 32;

constexpr int64_t kHalves = 2 * kTurn;  // values of a block whose halves lie in turns

inline int64_t padded_to_blocks(int64_t count) { return (count + kHalves - 1) / kHalves * kHalves; }

// hidden[m][i * rank + j] = sum over k of x[m][k] first[i][k] second[j][k]; rows of the factors are
// padded to blocks. With one row it asks for 8 bytes of `ahead` for each k.
template <class T, int kRows, int kFirst, int kSecond>
inline void project_products(int64_t in_features, int64_t rank, const float* x, int64_t x_stride,
                             const T* first, const T* second, const char* ahead, float* hidden) {
  const int64_t width = padded_to_blocks(in_features);
  Vec acc[kRows][kFirst][kSecond] = {};
  const auto add = [&](int64_t k, int v, const auto& read) __attribute__((always_inline)) {
    Vec factor[kSecond][2];
#pragma GCC unroll 8
    for (int j = 0; j < kSecond; ++j)
      load_halves(second + j * width + k, v, &factor[j][0], &factor[j][1]);
#pragma GCC unroll 8
    for (int i = 0; i < kFirst; ++i) {
      Vec other[2];
      load_halves(first + i * width + k, v, &other[0], &other[1]);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const Vec value = read(x + m * x_stride, k + half * kTurn + v * kLanes) * other[half];
#pragma GCC unroll 8
          for (int j = 0; j < kSecond; ++j)
            acc[m][i][j] = fma(value, factor[j][half], acc[m][i][j]);
        }
    }
  };
  const int64_t whole = in_features / kHalves * kHalves;
  for (int64_t k = 0; k < whole; k += kHalves)
    for (int v = 0; v < kTurn / kLanes; ++v) {
      if constexpr (kRows == 1) prefetch_lines<std::max(1, kLanes / 4)>(ahead + (k + v * kLanes) * 8);
      add(k, v, [](const float* row, int64_t place) { return load(row + place); });
    }
  if (whole < in_features)
    for (int v = 0; v < kTurn / kLanes; ++v)
      add(whole, v, [&](const float* row, int64_t place) {
        const int64_t left = std::clamp<int64_t>(in_features - place, 0, kLanes);
        return load_first(row + place, left);
      });
  for (int m = 0; m < kRows; ++m)
    for (int i = 0; i < kFirst; ++i)
      for (int j = 0; j < kSecond; ++j)
        hidden[m * rank * rank + i * rank + j] = sum(acc[m][i][j]);
}

// a: (2, rank, padded in_features); hidden: (kRows, rank * rank)
template <class T, int kRows>
void project_products(int64_t in_features, int64_t rank, const float* x, int64_t x_stride,
                      const T* a, const char* ahead, float* hidden) {
  constexpr int kFirst = kRows == 1 ? 4 : 1;
  const int64_t width = padded_to_blocks(in_features);
  const T* second = a + rank * width;
  const auto project = [&]<int kF, int kS>(int64_t i, int64_t j) {
    project_products<T, kRows, kF, kS>(in_features, rank, x, x_stride, a + i * width,
                                       second + j * width, ahead, hidden + i * rank + j);
    ahead += in_features * 8;
  };
  const int64_t firsts = rank / kFirst * kFirst, seconds = rank / 4 * 4;
  for (int64_t i = 0; i < rank; i += i < firsts ? kFirst : 1)
    for (int64_t j = 0; j < rank; j += j < seconds ? 4 : 1)
      if (i < firsts && j < seconds)
        project.template operator()<kFirst, 4>(i, j);
      else if (i < firsts)
        project.template operator()<kFirst, 1>(i, j);
      else if (j < seconds)
        project.template operator()<1, 4>(i, j);
      else
        project.template operator()<1, 1>(i, j);
}

// total[m] += sum over i and j of first[i] second[j] hidden[m][i * rank + j], for all i, kSecond of j,
// and vectors v of both halves of a panel.
template <class T, int kRows, int kSecond>
inline void expand_products(int64_t rank, const T* first, const T* second, int v,
                            const float* hidden, Vec total[kRows][2]) {
  Vec factor[kSecond][2];
#pragma GCC unroll 8
  for (int j = 0; j < kSecond; ++j)
    load_halves(second + j * kFactorPanel, v, &factor[j][0], &factor[j][1]);
  for (int64_t i = 0; i < rank; ++i) {
    Vec other[2];
    load_halves(first + i * kFactorPanel, v, &other[0], &other[1]);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const float* row = hidden + m * rank * rank + i * rank;
      Vec inner[2] = {};
#pragma GCC unroll 8
      for (int j = 0; j < kSecond; ++j)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half)
          inner[half] = fma(factor[j][half], row[j], inner[half]);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
        total[m][half] = fma(other[half], inner[half], total[m][half]);
    }
  }
}

// y[m] += hidden[m] b for kRows rows and one panel of b, (2, rank, 32): `count` outputs.
template <class T, int kRows>
inline void expand_products(int64_t rank, const float* hidden, const T* b, int64_t count, float* y,
                            int64_t y_stride) {
  const T* second = b + rank * kFactorPanel;
  for (int v = 0; v < kTurn / kLanes; ++v) {
    Vec total[kRows][2] = {};
    int64_t j = 0;
    for (; j + 8 <= rank; j += 8)
      expand_products<T, kRows, 8>(rank, b, second + j * kFactorPanel, v, hidden + j, total);
    for (; j < rank; ++j)
      expand_products<T, kRows, 1>(rank, b, second + j * kFactorPanel, v, hidden + j, total);
    for (int m = 0; m < kRows; ++m)
      for (int half = 0; half < 2; ++half) {
        const int64_t column = half * kTurn + v * kLanes;
        add_to_first(y + m * y_stride + column, total[m][half], count - column);
      }
  }
}

}  // namespace graftwork

// Low-rank pairs whose factors are Khatri-Rao products (LoHa, arXiv:2108.06098), made as they are
// needed: row i * r + j of A is first[i] * second[j], and column i * r + j of B is the product of
// columns i and j of two others. Two times r factors are read for r * r ranks.
#pragma once

#include <algorithm>

#include "ahead.h"
#include "simd.h"

namespace graftwork {

constexpr int64_t kFactorPanel = 32;

// hidden[m][i * rank + j] = sum over k of x[m][k] first[i][k] second[j][k]. With one row it asks for
// 8 bytes of `ahead` for each k.
template <class T, int kRows, int kFirst, int kSecond>
inline void project_products(int64_t in_features, int64_t rank, const float* x, int64_t x_stride,
                             const T* first, const T* second, const char* ahead, float* hidden) {
  Vec acc[kRows][kFirst][kSecond] = {};
  const auto add = [&](int64_t k, const auto& read) __attribute__((always_inline)) {
    Vec factor[kSecond];
#pragma GCC unroll 8
    for (int j = 0; j < kSecond; ++j) factor[j] = read(second + j * in_features + k);
#pragma GCC unroll 8
    for (int i = 0; i < kFirst; ++i) {
      const Vec other = read(first + i * in_features + k);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        const Vec value = read(x + m * x_stride + k) * other;
#pragma GCC unroll 8
        for (int j = 0; j < kSecond; ++j) acc[m][i][j] = fma(value, factor[j], acc[m][i][j]);
      }
    }
  };
  const int64_t whole = in_features / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) {
    if constexpr (kRows == 1) prefetch_lines<std::max(1, kLanes / 8)>(ahead + k * 8);
    add(k, [](const auto* p) { return load(p); });
  }
  if (whole < in_features)
    add(whole, [&](const auto* p) { return load_first(p, in_features - whole); });
  for (int m = 0; m < kRows; ++m)
    for (int i = 0; i < kFirst; ++i)
      for (int j = 0; j < kSecond; ++j)
        hidden[m * rank * rank + i * rank + j] = sum(acc[m][i][j]);
}

// a: (2, rank, in_features); hidden: (kRows, rank * rank)
template <class T, int kRows>
void project_products(int64_t in_features, int64_t rank, const float* x, int64_t x_stride,
                      const T* a, const char* ahead, float* hidden) {
  constexpr int kFirst = kRows == 1 ? 4 : 1;
  const T* second = a + rank * in_features;
  const auto project = [&]<int kF, int kS>(int64_t i, int64_t j) {
    project_products<T, kRows, kF, kS>(in_features, rank, x, x_stride, a + i * in_features,
                                       second + j * in_features, ahead, hidden + i * rank + j);
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

// total[m] += sum over i and j of first[i] second[j] hidden[m][i * rank + j], for all i, kSecond of j.
template <class T, int kRows, int kVecs, int kSecond>
inline void expand_products(int64_t rank, const T* first, const T* second, const float* hidden,
                            Vec total[kRows][kVecs]) {
  Vec factor[kSecond][kVecs];
#pragma GCC unroll 8
  for (int j = 0; j < kSecond; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) factor[j][v] = load(second + j * kFactorPanel + v * kLanes);
  for (int64_t i = 0; i < rank; ++i) {
    Vec other[kVecs];
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) other[v] = load(first + i * kFactorPanel + v * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const float* row = hidden + m * rank * rank + i * rank;
      Vec inner[kVecs] = {};
#pragma GCC unroll 8
      for (int j = 0; j < kSecond; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) inner[v] = fma(factor[j][v], row[j], inner[v]);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) total[m][v] = fma(other[v], inner[v], total[m][v]);
    }
  }
}

// y[m] += hidden[m] b for kRows rows and one panel of b, (2, rank, 32): `count` outputs.
template <class T, int kRows>
inline void expand_products(int64_t rank, const float* hidden, const T* b, int64_t count, float* y,
                            int64_t y_stride) {
  constexpr int kVecs = kRows == 1 ? 2 : 1;
  for (int64_t column = 0; column < count; column += kVecs * kLanes) {
    Vec total[kRows][kVecs] = {};
    const T* first = b + column;
    const T* second = first + rank * kFactorPanel;
    int64_t j = 0;
    for (; j + 8 <= rank; j += 8)
      expand_products<T, kRows, kVecs, 8>(rank, first, second + j * kFactorPanel, hidden + j, total);
    for (; j < rank; ++j)
      expand_products<T, kRows, kVecs, 1>(rank, first, second + j * kFactorPanel, hidden + j, total);
    for (int m = 0; m < kRows; ++m)
      for (int v = 0; v < kVecs; ++v) {
        float* out = y + m * y_stride + column + v * kLanes;
        const int64_t left = std::min<int64_t>(kLanes, count - column - v * kLanes);
        if (left == kLanes)
          store(out, load(out) + total[m][v]);
        else if (left > 0)
          store_first(out, load_first(out, left) + total[m][v], left);
      }
  }
}

}  // namespace graftwork

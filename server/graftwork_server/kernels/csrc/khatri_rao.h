// y += (x A^T) B^T where A and B are Khatri-Rao products, made as they are needed: row i * r + j of A
// is first_a[i] * second_a[j], and column i * r + j of B is first_b[:, i] * second_b[:, j].
#pragma once

#include <algorithm>

#include "scratch.h"
#include "term.h"
#include "simd.h"

namespace graftwork {

struct KhatriRao {
  const void* first_a;   // (rank, pad(in_features)), zeros after in_features
  const void* second_a;  // the same
  const void* first_b;   // (rank, pad(out_features)), zeros after out_features
  const void* second_b;  // the same
  int64_t rank, in_features, out_features, bfloat16;
};

// hidden[i * rank + j] = sum over k of x[k] first[i, k] second[j, k], for kFirst by kSecond of them.
template <class T, int kFirst, int kSecond>
inline void project_products(int64_t width, int64_t rank, const float* x, const T* first,
                             const T* second, float* hidden, Ahead& ahead) {
  Vec acc[kFirst][kSecond] = {};
  for (int64_t k = 0; k < width; k += kLanes) {
    ahead.step();
    const Vec value = load(x + k);
    Vec factor[kFirst];
#pragma GCC unroll 4
    for (int i = 0; i < kFirst; ++i) factor[i] = value * load(first + i * width + k);
#pragma GCC unroll 4
    for (int j = 0; j < kSecond; ++j) {
      const Vec other = load(second + j * width + k);
#pragma GCC unroll 4
      for (int i = 0; i < kFirst; ++i) acc[i][j] = fma(factor[i], other, acc[i][j]);
    }
  }
  for (int i = 0; i < kFirst; ++i)
    for (int j = 0; j < kSecond; ++j) hidden[i * rank + j] = sum(acc[i][j]);
}

template <class T, int kFirst>
inline void project_stripe(int64_t width, int64_t rank, const float* x, const T* first,
                           const T* second, float* hidden, Ahead& ahead) {
  int64_t j = 0;
  for (; j + 4 <= rank; j += 4)
    project_products<T, kFirst, 4>(width, rank, x, first, second + j * width, hidden + j, ahead);
  for (; j < rank; ++j)
    project_products<T, kFirst, 1>(width, rank, x, first, second + j * width, hidden + j, ahead);
}

// total + sum over i, j of first[i] second[j] hidden[i * rank + j], for all i and kSecond of j.
template <class T, int kSecond>
inline Vec expand_products(int64_t width, int64_t rank, const T* first, const T* second,
                           const float* hidden, Vec total, Ahead& ahead) {
  Vec factor[kSecond];
#pragma GCC unroll 8
  for (int j = 0; j < kSecond; ++j) factor[j] = load(second + j * width);
  for (int64_t i = 0; i < rank; ++i) {
    ahead.step();
    Vec inner{};
#pragma GCC unroll 8
    for (int j = 0; j < kSecond; ++j) inner = fma(factor[j], hidden[i * rank + j], inner);
    total = fma(load(first + i * width), inner, total);
  }
  return total;
}

template <class T>
void add_khatri_rao_row(const KhatriRao& k, const float* x, float* y, Ahead& ahead) {
  const int64_t rank = k.rank, in = pad(k.in_features), out = pad(k.out_features);
  float* padded = scratch<0>(in + rank * rank + out);
  float* hidden = padded + in;
  float* added = hidden + rank * rank;
  std::copy(x, x + k.in_features, padded);
  std::fill(padded + k.in_features, padded + in, 0.0f);
  const T* first = static_cast<const T*>(k.first_a);
  const T* second = static_cast<const T*>(k.second_a);
  int64_t i = 0;
  for (; i + 4 <= rank; i += 4)
    project_stripe<T, 4>(in, rank, padded, first + i * in, second, hidden + i * rank, ahead);
  for (; i < rank; ++i)
    project_stripe<T, 1>(in, rank, padded, first + i * in, second, hidden + i * rank, ahead);
  first = static_cast<const T*>(k.first_b);
  second = static_cast<const T*>(k.second_b);
  for (int64_t n = 0; n < out; n += kLanes) {
    Vec total{};
    int64_t j = 0;
    for (; j + 8 <= rank; j += 8)
      total = expand_products<T, 8>(out, rank, first + n, second + j * out + n, hidden + j, total,
                                    ahead);
    for (; j < rank; ++j)
      total = expand_products<T, 1>(out, rank, first + n, second + j * out + n, hidden + j, total,
                                    ahead);
    store(added + n, total);
  }
  add_to(y, added, k.out_features);
}

inline void add_khatri_rao(const KhatriRao& k, const TermRows& rows, Ahead& ahead) {
  const int64_t fours = k.rank / 4 + k.rank % 4, eights = k.rank / 8 + k.rank % 8;
  ahead.spread(rows.rows * (fours * fours * (pad(k.in_features) / kLanes) +
                            k.rank * eights * (pad(k.out_features) / kLanes)));
  for (int64_t row = 0; row < rows.rows; ++row) {
    const float* x = rows.x + row * rows.x_stride;
    float* y = rows.y + row * rows.y_stride;
    if (k.bfloat16)
      add_khatri_rao_row<BFloat16>(k, x, y, ahead);
    else
      add_khatri_rao_row<float>(k, x, y, ahead);
  }
}

}  // namespace graftwork

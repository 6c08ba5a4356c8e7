// What lies between the linear modules of a decoder layer: norm, rotation, gate. Rows are computed
// apart from each other, so their bits do not depend on their neighbours.
#pragma once

#include <cmath>

#include "parallel.h"
#include "simd.h"

namespace graftwork {

// Rows of a chunk: enough work to be worth handing over.
inline int64_t rows_per_chunk(int64_t features) { return std::max<int64_t>(1, 8192 / features); }

// y = x / sqrt(mean(x^2) + eps) * (offset + weight)
inline void rms_norm_row(const float* x, const float* weight, float offset, float eps,
                         int64_t features, float* y) {
  Vec squares{};
  int64_t i = 0;
  for (; i + kLanes <= features; i += kLanes) {
    const Vec v = load(x + i);
    squares = fma(v, v, squares);
  }
  if (i < features) {
    const Vec v = load_first(x + i, features - i);
    squares = fma(v, v, squares);
  }
  const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(features) + eps);
  for (i = 0; i + kLanes <= features; i += kLanes)
    store(y + i, load(x + i) * splat(scale) * (load(weight + i) + splat(offset)));
  for (; i < features; ++i) y[i] = x[i] * scale * (weight[i] + offset);
}

inline void rms_norm(const float* x, const float* weight, float offset, float eps, int64_t rows,
                     int64_t features, float* y) {
  for_each_chunk(rows, rows_per_chunk(features), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      rms_norm_row(x + row * features, weight, offset, eps, features, y + row * features);
  });
}

// gate = gate / (1 + exp(-gate)) * up, in place.
inline void silu_multiply(float* gate, const float* up, int64_t rows, int64_t features) {
  const Vec one = splat(1.0f);
  // Beyond this exp overflows; the quotient is zero to float precision long before.
  const Vec most = splat(88.0f);
  for_each_chunk(rows, rows_per_chunk(features), [&](int64_t begin, int64_t end) {
    float* g = gate + begin * features;
    const float* u = up + begin * features;
    const int64_t count = (end - begin) * features;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const Vec v = load(g + i);
      const Vec power = exp(-maximum(v, -most));
      store(g + i, v / (one + power) * load(u + i));
    }
    if (i < count) {
      const Vec v = load_first(g + i, count - i);
      const Vec power = exp(-maximum(v, -most));
      store_first(g + i, v / (one + power) * load_first(u + i, count - i), count - i);
    }
  });
}

// Rotates halves of each head in place (RoFormer, arXiv:2104.09864, in the layout of GPT-NeoX):
// first = first * cos - second * sin, second = second * cos' + first * sin'.
inline void rotate_head(float* head, const float* cosine, const float* sine, int64_t dim) {
  const int64_t half = dim / 2;
  float* low = head;
  float* high = head + half;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec a = load(low + i), b = load(high + i);
    store(low + i, a * load(cosine + i) - b * load(sine + i));
    store(high + i, b * load(cosine + half + i) + a * load(sine + half + i));
  }
  for (; i < half; ++i) {
    const float a = low[i], b = high[i];
    low[i] = a * cosine[i] - b * sine[i];
    high[i] = b * cosine[half + i] + a * sine[half + i];
  }
}

// x: (tokens, heads, dim) contiguous; cosine, sine: (tokens, dim) contiguous.
inline void rotate_heads(float* x, const float* cosine, const float* sine, int64_t tokens,
                         int64_t heads, int64_t dim) {
  for_each_chunk(tokens, rows_per_chunk(heads * dim), [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token)
      for (int64_t h = 0; h < heads; ++h)
        rotate_head(x + (token * heads + h) * dim, cosine + token * dim, sine + token * dim, dim);
  });
}

}  // namespace graftwork

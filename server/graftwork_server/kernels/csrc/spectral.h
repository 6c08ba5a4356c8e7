// y += x D^T, D the real part of the inverse two-dimensional Fourier transform of a sparse matrix S
// (FourierFT): a transform of x, S, and a transform back, for a vector of rows at once. Rows of all
// slots whose S has its values at the same places go together; the values are a slot's own.
#pragma once

#include <algorithm>
#include <vector>

#include "fourier.h"
#include "parallel.h"
#include "term.h"

namespace graftwork {

struct Spectral {
  const int32_t* places;     // (count, 2): row and column of S
  const float* in_roots;     // (in_features, 2): cosines and sines, as Roots says
  const float* out_roots;    // (out_features, 2)
  const float* values;       // (pad(count),), over in_features * out_features; zeros after count
  int64_t count, in_features, out_features;
};

struct SpectralRow {
  const Spectral* slot;
  int64_t row;
};

using SpectralRows = std::vector<SpectralRow>;

// spectrum[row of S] += value * transformed[column of S], for all values and lanes.
inline void multiply_places(const SpectralRow* rows, int64_t count, const Complex* transformed,
                            Complex* spectrum) {
  const Spectral& s = *rows[0].slot;
  for (int64_t first = 0; first < s.count; first += kLanes) {
    Vec values[kLanes] = {};
    for (int64_t r = 0; r < count; ++r) values[r] = load(rows[r].slot->values + first);
    transpose(values);
    const int64_t stop = std::min<int64_t>(kLanes, s.count - first);
    for (int64_t i = 0; i < stop; ++i) {
      const int32_t* place = s.places + 2 * (first + i);
      const Complex& from = transformed[place[1]];
      Complex& to = spectrum[place[0]];
      to.real = fma(from.real, values[i], to.real);
      to.imaginary = fma(from.imaginary, values[i], to.imaginary);
    }
  }
}

// turned[k] holds feature k of all rows: lane r is row r.
inline void turn(const SpectralRow* rows, int64_t count, int64_t features, const float* x,
                 int64_t x_stride, Vec* turned) {
  for (int64_t first = 0; first < features; first += kLanes) {
    const int64_t width = std::min<int64_t>(kLanes, features - first);
    Vec block[kLanes] = {};
    for (int64_t r = 0; r < count; ++r) {
      const float* from = x + rows[r].row * x_stride + first;
      block[r] = width == kLanes ? load(from) : load_first(from, width);
    }
    transpose(block);
    std::copy_n(block, width, turned + first);
  }
}

// The real parts, turned back, are added to y.
inline void add_turned(const SpectralRow* rows, int64_t count, int64_t features,
                       const Complex* turned, float* y, int64_t y_stride) {
  for (int64_t first = 0; first < features; first += kLanes) {
    const int64_t width = std::min<int64_t>(kLanes, features - first);
    Vec block[kLanes] = {};
    for (int64_t i = 0; i < width; ++i) block[i] = turned[first + i].real;
    transpose(block);
    for (int64_t r = 0; r < count; ++r) {
      float* to = y + rows[r].row * y_stride + first;
      if (width == kLanes)
        store(to, load(to) + block[r]);
      else
        store_first(to, load_first(to, width) + block[r], width);
    }
  }
}

// At most kLanes rows with the same places.
inline void add_spectral_rows(const SpectralRow* rows, int64_t count, const float* x,
                              int64_t x_stride, float* y, int64_t y_stride) {
  const Spectral& s = *rows[0].slot;
  const int64_t n = s.in_features, m = s.out_features, most = std::max(n, m);
  constexpr int64_t kVecs = sizeof(Complex) / sizeof(Vec);
  // Aligned by hand; the last vector's worth makes room for it.
  float* memory = scratch<0>((3 * most + 1) * kVecs * kLanes);
  const uintptr_t unaligned = reinterpret_cast<uintptr_t>(memory) % sizeof(Vec);
  memory += unaligned == 0 ? 0 : (sizeof(Vec) - unaligned) / sizeof(float);
  Complex* spectrum = reinterpret_cast<Complex*>(memory);
  Complex* transformed = spectrum + most;
  Complex* held = transformed + most;
  Vec* turned = reinterpret_cast<Vec*>(spectrum);
  turn(rows, count, n, x, x_stride, turned);
  const auto input = [&](int64_t k) { return Complex{turned[k], Vec{}}; };
  transform(n, input, 0, 1, Roots{s.in_roots, n}, transformed, held);
  std::fill(spectrum, spectrum + m, Complex{});
  multiply_places(rows, count, transformed, spectrum);
  const auto between = [&](int64_t k) { return spectrum[k]; };
  transform(m, between, 0, 1, Roots{s.out_roots, m}, transformed, held);
  add_turned(rows, count, m, transformed, y, y_stride);
}

inline void add_spectral(SpectralRows rows, const float* x, int64_t x_stride, float* y,
                         int64_t y_stride) {
  std::stable_sort(rows.begin(), rows.end(), [](const SpectralRow& a, const SpectralRow& b) {
    return a.slot->places < b.slot->places;
  });
  std::vector<int64_t> starts;  // of the rows that go together
  for (int64_t i = 0; i < static_cast<int64_t>(rows.size()); ++i)
    if (i == 0 || i - starts.back() == kLanes ||
        rows[i].slot->places != rows[i - 1].slot->places)
      starts.push_back(i);
  const int64_t count = starts.size();
  starts.push_back(rows.size());
  for_each_chunk(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      add_spectral_rows(rows.data() + starts[i], starts[i + 1] - starts[i], x, x_stride, y,
                        y_stride);
  });
}

}  // namespace graftwork

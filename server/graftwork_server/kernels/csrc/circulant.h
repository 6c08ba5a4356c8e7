// Adds a block-circulant matrix, by the convolution theorem: the blocks of a row are transformed, at
// each frequency one small matrix acts over the blocks, and the result is transformed back.
//
// Blocks are short, so a transform is a product with a matrix of cosines and sines, for all blocks of
// all rows at once.
#pragma once

#include <algorithm>

#include "scratch.h"
#include "term.h"
#include "tile.h"

namespace graftwork {

struct Circulant {
  const float* forward;  // (size, 2 * pad(frequencies)): of a block to its spectrum
  const float* inverse;  // (2 * pad(frequencies), pad(size)): back
  const void* spectra;   // (output blocks, input blocks, 2, pad(frequencies)): real, imaginary
  int64_t input_blocks, output_blocks, size, frequencies, bfloat16;
};

// out[block] = sum over the input blocks of in[input block] * spectra[block, input block], complex.
template <class T>
void multiply_spectra(const Circulant& c, const float* in, float* out, Ahead& ahead) {
  const int64_t f = pad(c.frequencies), width = 2 * f;
  for (int64_t block = 0; block < c.output_blocks; ++block) {
    ahead.step();
    for (int64_t v = 0; v < f; v += kLanes) {
      Vec real{}, imaginary{};
      const T* k = static_cast<const T*>(c.spectra) + block * c.input_blocks * width + v;
      for (int64_t n = 0; n < c.input_blocks; ++n, k += width) {
        const Vec a = load(in + n * width + v), b = load(in + n * width + f + v);
        const Vec p = load(k), q = load(k + f);
        real = fma(a, p, fma(-b, q, real));
        imaginary = fma(a, q, fma(b, p, imaginary));
      }
      store(out + block * width + v, real);
      store(out + block * width + f + v, imaginary);
    }
  }
}

inline void add_circulant(const Circulant& c, const TermRows& rows, Ahead& ahead) {
  const int64_t width = 2 * pad(c.frequencies), size = pad(c.size);
  const int64_t n = rows.rows * c.input_blocks, m = rows.rows * c.output_blocks;
  float* in = scratch<0>(n * width + m * width + m * size);
  float* out = in + n * width;
  float* added = out + m * width;
  std::fill(in, out, 0.0f);
  for (int64_t row = 0; row < rows.rows; ++row)
    multiply(c.input_blocks, c.size, width, rows.x + row * rows.x_stride, c.size, c.forward, width,
             in + row * c.input_blocks * width, width);
  ahead.spread(m);
  for (int64_t row = 0; row < rows.rows; ++row) {
    const float* spectrum = in + row * c.input_blocks * width;
    if (c.bfloat16)
      multiply_spectra<BFloat16>(c, spectrum, out + row * c.output_blocks * width, ahead);
    else
      multiply_spectra<float>(c, spectrum, out + row * c.output_blocks * width, ahead);
  }
  std::fill(added, added + m * size, 0.0f);
  multiply(m, width, size, out, width, c.inverse, size, added, size);
  for (int64_t row = 0; row < rows.rows; ++row)
    for (int64_t block = 0; block < c.output_blocks; ++block)
      add_to(rows.y + row * rows.y_stride + block * c.size,
             added + (row * c.output_blocks + block) * size, c.size);
}

}  // namespace graftwork

// The Fourier transform of any length, of as many rows at once as a vector has lanes.
//
// A lane is a row: it goes through the same operations whatever the other lanes hold. Decimation in
// time (Cooley and Tukey, 1965), four parts at a time while they divide the length, then its primes.
#pragma once

#include <algorithm>

#include "scratch.h"
#include "simd.h"

namespace graftwork {

struct Complex {
  Vec real, imaginary;
};

// e^(2 pi i k / size) for k < size: interleaved, real parts first.
struct Roots {
  const float* values;
  int64_t size;

  const float* at(int64_t k) const { return values + 2 * k; }
};

inline Complex turned_by(Complex z, const float* root) {
  return {fma(z.real, root[0], -(z.imaginary * root[1])),
          fma(z.real, root[1], z.imaginary * root[0])};
}

inline int64_t smallest_part(int64_t size) {
  if (size % 4 == 0) return 4;
  for (int64_t p = 2; p * p <= size; ++p)
    if (size % p == 0) return p;
  return size;
}

inline void join_two(int64_t m, int64_t step, const Roots& roots, Complex* out) {
  for (int64_t k = 0; k < m; ++k) {
    const Complex a = out[k], b = turned_by(out[m + k], roots.at(k * step));
    out[k] = {a.real + b.real, a.imaginary + b.imaginary};
    out[m + k] = {a.real - b.real, a.imaginary - b.imaginary};
  }
}

inline void join_four(int64_t m, int64_t step, const Roots& roots, Complex* out) {
  for (int64_t k = 0; k < m; ++k) {
    const Complex a = out[k];
    const Complex b = turned_by(out[m + k], roots.at(k * step));
    const Complex c = turned_by(out[2 * m + k], roots.at(2 * k * step));
    const Complex d = turned_by(out[3 * m + k], roots.at(3 * k * step));
    const Complex even{a.real + c.real, a.imaginary + c.imaginary};
    const Complex odd{a.real - c.real, a.imaginary - c.imaginary};
    const Complex sum{b.real + d.real, b.imaginary + d.imaginary};
    const Complex quarter{d.imaginary - b.imaginary, b.real - d.real};  // i (b - d)
    out[k] = {even.real + sum.real, even.imaginary + sum.imaginary};
    out[m + k] = {odd.real + quarter.real, odd.imaginary + quarter.imaginary};
    out[2 * m + k] = {even.real - sum.real, even.imaginary - sum.imaginary};
    out[3 * m + k] = {odd.real - quarter.real, odd.imaginary - quarter.imaginary};
  }
}

inline void join_any(int64_t parts, int64_t m, int64_t step, const Roots& roots, Complex* out,
                     Complex* held) {
  for (int64_t k = 0; k < m; ++k) {
    for (int64_t q = 0; q < parts; ++q)
      held[q] = turned_by(out[q * m + k], roots.at(q * k * step));
    for (int64_t j = 0; j < parts; ++j) {
      Complex total = held[0];
      for (int64_t q = 1; q < parts; ++q) {
        const Complex z = turned_by(held[q], roots.at(q * j % parts * m * step));
        total.real += z.real;
        total.imaginary += z.imaginary;
      }
      out[j * m + k] = total;
    }
  }
}

// out[k] = sum over j < size of in[j * stride] e^(2 pi i j k / size); stride * size is roots.size.
// held: as many as the largest prime in size.
template <class In>
void transform(int64_t size, const In& in, int64_t first, int64_t stride, const Roots& roots,
               Complex* out, Complex* held) {
  if (size == 1) {
    out[0] = in(first);
    return;
  }
  const int64_t parts = smallest_part(size), m = size / parts;
  for (int64_t q = 0; q < parts; ++q)
    transform(m, in, first + q * stride, stride * parts, roots, out + q * m, held);
  if (parts == 4)
    join_four(m, stride, roots, out);
  else if (parts == 2)
    join_two(m, stride, roots, out);
  else
    join_any(parts, m, stride, roots, out, held);
}

}  // namespace graftwork

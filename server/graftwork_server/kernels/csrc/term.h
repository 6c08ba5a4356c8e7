// What every kind of added term is given: some rows of one slot.
#pragma once

#include <cstdint>

#include "ahead.h"

namespace graftwork {

// One row of the slot table: (4,) int64.
struct TermSlot {
  int64_t kind;               // 0 where the slot has no term
  const int64_t* parameters;  // addresses and sizes, as the kind's struct says
  const void* data;           // what is read for each row
  int64_t bytes;
};

// Rows that lie `x_stride` and `y_stride` floats apart.
struct TermRows {
  int64_t rows;
  const float* x;
  int64_t x_stride;
  float* y;
  int64_t y_stride;
};

template <class Parameters>
inline const Parameters& parameters_of(const TermSlot& slot) {
  return *reinterpret_cast<const Parameters*>(slot.parameters);
}

inline void add_to(float* y, const float* added, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] += added[i];
}

}  // namespace graftwork

// y[m] = scale * y[m] + bias with another (scale, bias) per row.
#pragma once

#include "parallel.h"
#include "runs.h"

namespace graftwork {

// One row of the slot table: (2,) int64 addresses of (out_features,) float32, 0 where there is none.
struct OutputScaleSlot {
  int64_t scale;
  int64_t bias;

  bool changes() const { return scale != 0 || bias != 0; }
};

// Outputs [first, stop) of one row.
inline void scale_row(const OutputScaleSlot& slot, int64_t first, int64_t stop, float* y) {
  const float* scale = reinterpret_cast<const float*>(slot.scale);
  const float* bias = reinterpret_cast<const float*>(slot.bias);
  if (scale != nullptr && bias != nullptr)
    for (int64_t n = first; n < stop; ++n) y[n] = y[n] * scale[n] + bias[n];
  else if (scale != nullptr)
    for (int64_t n = first; n < stop; ++n) y[n] *= scale[n];
  else if (bias != nullptr)
    for (int64_t n = first; n < stop; ++n) y[n] += bias[n];
}

inline void apply_output_scale(const OutputScaleSlot* slots, const Run* runs, int64_t count,
                               int64_t out_features, int64_t y_stride, float* y) {
  for (int64_t i = 0; i < count; ++i) {
    const OutputScaleSlot& slot = slots[runs[i].slot];
    if (!slot.changes()) continue;
    float* first = y + runs[i].start * y_stride;
    for_each_chunk(runs[i].stop - runs[i].start, 64, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        scale_row(slot, 0, out_features, first + row * y_stride);
    });
  }
}

}  // namespace graftwork

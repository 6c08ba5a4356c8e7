// Pairs of a row's features rotated and scaled, with other angles for each slot: in groups of even
// size, feature i of the first half with feature i of the second.
#pragma once

#include "elementwise.h"
#include "runs.h"

namespace graftwork {

// One row of the slot table: (3,) int64.
struct PairRotationSlot {
  const float* cosine;  // (features,), 0 where the slot has no rotation
  const float* sine;    // the same
  int64_t half;         // half the size of a group
};

inline void rotate_pairs_row(const PairRotationSlot& slot, int64_t features, float* y) {
  const int64_t half = slot.half;
  for (int64_t group = 0; group < features; group += 2 * half)
    rotate_head(y + group, slot.cosine + group, slot.sine + group, 2 * half);
}

inline void rotate_pairs(const PairRotationSlot* slots, const Run* runs, int64_t count,
                         int64_t features, int64_t y_stride, float* y) {
  for (int64_t i = 0; i < count; ++i) {
    const PairRotationSlot& slot = slots[runs[i].slot];
    if (slot.cosine == nullptr) continue;
    float* first = y + runs[i].start * y_stride;
    for_each_chunk(runs[i].stop - runs[i].start, 64, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        rotate_pairs_row(slot, features, first + row * y_stride);
    });
  }
}

}  // namespace graftwork

// y += b_scale * (B (a_scale * (A x))), where slots share A and B, and rows of all of them go through
// A and B together.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "parallel.h"
#include "term.h"
#include "tile.h"

namespace graftwork {

struct SharedLowRank {
  const void* first;     // A: (panels of 32 ranks, a_features, 32), of which in_features are used
  const void* second;    // B: (panels of 32 outputs, padded rank, 32)
  const float* a_scale;  // (rank,)
  const float* b_scale;  // (out_features,)
  int64_t rank, in_features, out_features, a_features, bfloat16;
};

struct SharedRow {
  const SharedLowRank* slot;
  int64_t row;
};

constexpr int64_t kSharedPanel = 32;
constexpr size_t kSharedRows = 96;  // whose inputs stay in the second-level cache

template <class T>
void project_shared(const std::vector<SharedRow>& rows, const float* x, int64_t panel,
                           float* hidden, int64_t stride) {
  const SharedLowRank& shape = *rows[0].slot;
  float* out = hidden + panel * kSharedPanel;
  multiply(rows.size(), shape.in_features, kSharedPanel, x, shape.in_features,
           static_cast<const T*>(shape.first) + panel * shape.a_features * kSharedPanel, kSharedPanel,
           out, stride);
  const int64_t first = panel * kSharedPanel;
  const int64_t count = std::min(kSharedPanel, shape.rank - first);
  for (size_t r = 0; r < rows.size(); ++r)
    for (int64_t j = 0; j < count; ++j) out[r * stride + j] *= rows[r].slot->a_scale[first + j];
}

template <class T>
void expand_shared(const std::vector<SharedRow>& rows, const float* hidden, int64_t depth,
                          int64_t panel, float* y, int64_t y_stride) {
  const SharedLowRank& shape = *rows[0].slot;
  float added[kSharedRows * kSharedPanel];
  std::fill(added, added + rows.size() * kSharedPanel, 0.0f);
  multiply(rows.size(), depth, kSharedPanel, hidden, depth,
           static_cast<const T*>(shape.second) + panel * depth * kSharedPanel, kSharedPanel, added,
           kSharedPanel);
  const int64_t first = panel * kSharedPanel;
  const int64_t count = std::min(kSharedPanel, shape.out_features - first);
  for (size_t r = 0; r < rows.size(); ++r) {
    float* out = y + rows[r].row * y_stride + first;
    const float* scale = rows[r].slot->b_scale + first;
    for (int64_t j = 0; j < count; ++j) out[j] += added[r * kSharedPanel + j] * scale[j];
  }
}

// rows: at most kSharedRows, all with the same A and B.
template <class T>
void add_shared_rows(const std::vector<SharedRow>& rows, const float* x, int64_t x_stride,
                            float* y, int64_t y_stride) {
  const SharedLowRank& shape = *rows[0].slot;
  const int64_t panels = divide_up(shape.rank, kSharedPanel), depth = panels * kSharedPanel;
  const int64_t count = rows.size();
  std::vector<float> inputs(count * shape.in_features), hidden(count * depth);
  for (int64_t r = 0; r < count; ++r)
    std::copy_n(x + rows[r].row * x_stride, shape.in_features,
                inputs.data() + r * shape.in_features);
  for_each_chunk(panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      project_shared<T>(rows, inputs.data(), panel, hidden.data(), depth);
  });
  const int64_t out_panels = divide_up(shape.out_features, kSharedPanel);
  for_each_chunk(out_panels, divide_up(out_panels, 8), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      expand_shared<T>(rows, hidden.data(), depth, panel, y, y_stride);
  });
}

// Calls run(group) for at most kSharedRows rows at a time whose slots share their matrices.
template <class Row, class RunGroup>
void for_each_group(std::vector<Row> rows, const RunGroup& run) {
  const auto key = [](const Row& row) { return std::pair(row.slot->first, row.slot->second); };
  std::stable_sort(rows.begin(), rows.end(),
                   [&](const Row& a, const Row& b) { return key(a) < key(b); });
  std::vector<Row> group;
  for (size_t i = 0; i < rows.size(); ++i) {
    group.push_back(rows[i]);
    if (i + 1 < rows.size() && key(rows[i + 1]) == key(rows[i]) && group.size() < kSharedRows)
      continue;
    run(group);
    group.clear();
  }
}

inline void add_shared_low_rank(const std::vector<SharedRow>& rows, const float* x,
                                int64_t x_stride, float* y, int64_t y_stride) {
  for_each_group(rows, [&](const std::vector<SharedRow>& group) {
    if (group[0].slot->bfloat16)
      add_shared_rows<BFloat16>(group, x, x_stride, y, y_stride);
    else
      add_shared_rows<float>(group, x, x_stride, y, y_stride);
  });
}

}  // namespace graftwork

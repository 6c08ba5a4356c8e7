// y += x D^T, D the sum of many scaled products of two matrices that slots share (RandLoRA). Rows of
// all these slots go through the shared matrices together; only the scales are a slot's own.
//
// With n over the bases and r over the rank, where the inputs are not more than the outputs:
//   hidden[n, r] = row_scale[r, n] * sum_k a[r, k] column_scale[n, k] x[k];  y += b hidden
// else the transpose of that:
//   hidden[n, r] = row_scale[r, n] * sum_k b[k, n, r] x[k];
//   y[j] += sum_n column_scale[n, j] sum_r a[r, j] hidden[n, r]
#pragma once

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "shared_low_rank.h"

namespace graftwork {

struct SharedBases {
  const void* first;          // wide: a in panels of 32 ranks, (panels, first_features, 32);
                              // tall: b, (bases, panels, first_features, 32)
  const void* second;         // wide: b in panels of 32 outputs, (panels, bases * padded, 32);
                              // tall: a in panels of 32 outputs, (panels, padded, 32)
  const float* row_scale;     // (bases, padded rank), zeros after the rank
  const float* column_scale;  // (bases, least)
  int64_t bases, padded_rank, in_features, out_features, first_features, bfloat16;

  bool is_wide() const { return in_features <= out_features; }
};

struct BasesRow {
  const SharedBases* slot;
  int64_t row;
};

using BasesRows = std::vector<BasesRow>;

inline void scale_hidden(const SharedBases& slot, int64_t first, int64_t last, float* hidden) {
  for (int64_t i = first; i < last; ++i) hidden[i] *= slot.row_scale[i];
}

// Rows of the batch one by one: each is scaled for every base, and a acts on all of these.
template <class T>
void project_wide(const BasesRow& row, const float* x, float* hidden) {
  const SharedBases& s = *row.slot;
  float* scaled = scratch<0>(s.bases * s.in_features);
  for (int64_t n = 0; n < s.bases; ++n)
    for (int64_t k = 0; k < s.in_features; ++k)
      scaled[n * s.in_features + k] = x[k] * s.column_scale[n * s.in_features + k];
  std::fill(hidden, hidden + s.bases * s.padded_rank, 0.0f);
  for (int64_t r = 0; r < s.padded_rank; r += kSharedPanel)
    multiply(s.bases, s.in_features, kSharedPanel, scaled, s.in_features,
             static_cast<const T*>(s.first) + r * s.first_features, kSharedPanel, hidden + r,
             s.padded_rank);
  scale_hidden(s, 0, s.bases * s.padded_rank, hidden);
}

// One panel of all hidden values, for all rows.
template <class T>
void project_tall(const BasesRows& rows, int64_t panel, const float* x, float* hidden) {
  const SharedBases& s = *rows[0].slot;
  const int64_t width = s.bases * s.padded_rank, first = panel * kSharedPanel;
  for (size_t r = 0; r < rows.size(); ++r)
    std::fill_n(hidden + r * width + first, kSharedPanel, 0.0f);
  multiply(rows.size(), s.in_features, kSharedPanel, x, s.in_features,
           static_cast<const T*>(s.first) + first * s.first_features, kSharedPanel, hidden + first,
           width);
  for (size_t r = 0; r < rows.size(); ++r)
    scale_hidden(*rows[r].slot, first, first + kSharedPanel, hidden + r * width);
}

template <class T>
void expand_wide(const BasesRows& rows, int64_t panel, const float* hidden, float* y,
                 int64_t y_stride) {
  const SharedBases& s = *rows[0].slot;
  const int64_t width = s.bases * s.padded_rank, first = panel * kSharedPanel;
  float added[kSharedRows * kSharedPanel];
  std::fill_n(added, rows.size() * kSharedPanel, 0.0f);
  multiply(rows.size(), width, kSharedPanel, hidden, width,
           static_cast<const T*>(s.second) + first * width, kSharedPanel, added, kSharedPanel);
  for (size_t r = 0; r < rows.size(); ++r)
    add_to(y + rows[r].row * y_stride + first, added + r * kSharedPanel,
           std::min(kSharedPanel, s.out_features - first));
}

template <class T>
void expand_tall(const BasesRows& rows, int64_t panel, const float* hidden, float* y,
                 int64_t y_stride) {
  const SharedBases& s = *rows[0].slot;
  const int64_t count = rows.size() * s.bases, first = panel * kSharedPanel;
  float* terms = scratch<0>(count * kSharedPanel);
  std::fill_n(terms, count * kSharedPanel, 0.0f);
  multiply(count, s.padded_rank, kSharedPanel, hidden, s.padded_rank,
           static_cast<const T*>(s.second) + first * s.padded_rank, kSharedPanel, terms,
           kSharedPanel);
  const int64_t outputs = std::min(kSharedPanel, s.out_features - first);
  for (size_t r = 0; r < rows.size(); ++r) {
    float added[kSharedPanel] = {};
    for (int64_t n = 0; n < s.bases; ++n) {
      const float* scale = rows[r].slot->column_scale + n * s.out_features + first;
      const float* term = terms + (r * s.bases + n) * kSharedPanel;
      for (int64_t j = 0; j < outputs; ++j) added[j] += scale[j] * term[j];
    }
    add_to(y + rows[r].row * y_stride + first, added, outputs);
  }
}

// rows: at most kSharedRows, all with the same shared matrices.
template <class T>
void add_bases_rows(const BasesRows& rows, const float* x, int64_t x_stride, float* y,
                    int64_t y_stride) {
  const SharedBases& s = *rows[0].slot;
  const int64_t width = s.bases * s.padded_rank, count = rows.size();
  std::vector<float> inputs(count * s.in_features), hidden(count * width);
  for (int64_t r = 0; r < count; ++r)
    std::copy_n(x + rows[r].row * x_stride, s.in_features, inputs.data() + r * s.in_features);
  if (s.is_wide())
    for_each_chunk(count, divide_up(count, 8), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        project_wide<T>(rows[r], inputs.data() + r * s.in_features, hidden.data() + r * width);
    });
  else
    for_each_chunk(width / kSharedPanel, 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel)
        project_tall<T>(rows, panel, inputs.data(), hidden.data());
    });
  const int64_t panels = divide_up(s.out_features, kSharedPanel);
  for_each_chunk(panels, divide_up(panels, 8), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      if (s.is_wide())
        expand_wide<T>(rows, panel, hidden.data(), y, y_stride);
      else
        expand_tall<T>(rows, panel, hidden.data(), y, y_stride);
  });
}

inline void add_shared_bases(const BasesRows& rows, const float* x, int64_t x_stride, float* y,
                             int64_t y_stride) {
  for_each_group(rows, [&](const BasesRows& group) {
    if (group[0].slot->bfloat16)
      add_bases_rows<BFloat16>(group, x, x_stride, y, y_stride);
    else
      add_bases_rows<float>(group, x, x_stride, y, y_stride);
  });
}

}  // namespace graftwork

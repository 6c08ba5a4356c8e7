// What adapters do to the outputs of a product as each panel of it is done.
#pragma once

#include <algorithm>
#include <vector>

#include "ahead.h"
#include "low_rank.h"
#include "output_scale.h"
#include "panel_linear.h"

namespace graftwork {

// Rows of one slot whose x A^T is known.
struct ProjectedRun {
  LowRankSlot slot;
  int64_t start, stop;
  const float* hidden;  // (stop - start, slot.width())
};

struct ScaledRun {
  OutputScaleSlot slot;
  int64_t start, stop;
};

// What adapters do to one product's rows, panel by panel while the panel is in the caches: low-rank
// terms are added, then outputs scaled. What is read for it is asked for beforehand.
class PanelEdits {
 public:
  void add(const ProjectedRun& run) { added_.push_back(run); }
  void add(const ScaledRun& run) { scaled_.push_back(run); }

  // Rows [begin, stop) of y: (rows, out_features).
  void apply(int64_t panel, int64_t begin, int64_t stop, int64_t out_features, float* y) const {
    for (size_t i = 0; i < std::max(added_.size(), scaled_.size()); ++i) {
      if (i < scaled_.size()) ask_scales(scaled_[i], panel + 1);
      if (i < added_.size()) add(added_[i], panel, begin, stop, out_features, y);
    }
    const int64_t output = panel * kPanel, end = std::min(output + kPanel, out_features);
    for (const ScaledRun& run : scaled_)
      for (int64_t row = std::max(begin, run.start); row < std::min(stop, run.stop); ++row)
        scale_row(run.slot, output, end, y + row * out_features);
  }

  // Before the first panel of some that one thread computes in a row.
  void begin(int64_t panel) const {
    for (const ScaledRun& run : scaled_) ask_scales(run, panel);
  }

  // Appends where the factors of `panel` lie.
  void locate_factors(int64_t panel, BlocksAhead& blocks) const {
    for (const ProjectedRun& run : added_) {
      const int64_t bytes = run.slot.stored() * kFactorPanel * run.slot.element();
      blocks.add(reinterpret_cast<const char*>(run.slot.b) + panel * bytes, bytes);
    }
  }

 private:
  static void add(const ProjectedRun& run, int64_t panel, int64_t begin, int64_t stop,
                  int64_t out_features, float* y) {
    const int64_t first = std::max(begin, run.start), last = std::min(stop, run.stop);
    if (first >= last) return;
    const float* hidden = run.hidden + (first - run.start) * run.slot.width();
    float* rows = y + first * out_features;
    if (run.slot.is_bfloat16())
      expand_panel<BFloat16>(run.slot, out_features, panel, last - first, hidden, rows, out_features);
    else
      expand_panel<float>(run.slot, out_features, panel, last - first, hidden, rows, out_features);
  }

  static void ask_scales(const ScaledRun& run, int64_t panel) {
    for (const int64_t values : {run.slot.scale, run.slot.bias})
      if (values != 0) {
        const float* first = reinterpret_cast<const float*>(values) + panel * kPanel;
        prefetch(first);
        prefetch(first + kPanel / 2);
      }
  }

  std::vector<ProjectedRun> added_;
  std::vector<ScaledRun> scaled_;
};

}  // namespace graftwork

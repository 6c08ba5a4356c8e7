// y = x W^T + bias for int8 weights by groups along in_features, in integers; for several weights
// with the same input in one go, low-rank terms and output scales of adapters included.
//
// Each group of a row's activations becomes 16-bit integers under a scale of its own, so that
// products and sums within a group are exact, at twice the rate of float32 and with weights that
// stay integers. The groups' sums are one chain of fused multiply-adds over groups ascending: a
// row's bits depend on nothing else. Rounding moves an activation by at most 2^-16 of the largest
// of its group.
#pragma once

#include <cmath>

#include "ahead.h"
#include "low_rank.h"
#include "output_scale.h"
#include "panel_edits.h"
#include "panel_linear.h"
#include "scratch.h"

namespace graftwork {

// 512 products of a weight's code and an activation's stay below 2^31.
constexpr int64_t kLongestRoundedGroup = 512;

inline bool can_round(int64_t group) { return group % 2 == 0 && group <= kLongestRoundedGroup; }

struct Rounded {
  int16_t* codes;  // (rows, in_features)
  float* scales;   // (rows, groups)
};

// A group of zeros, or of nothing a float32 can divide by, becomes zeros; one that is not finite
// gets the scale NaN, and so does all that is computed from it.
inline void round_group(const float* x, int64_t count, int16_t* codes, float* scale) {
  constexpr float kLargest = 32767.0f;
  constexpr float kSmallest = 1e-30f;
  Vec most{}, poison{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec v = load(x + i);
    most = maximum(most, maximum(v, -v));
    poison = fma(v, 0.0f, poison);
  }
  float largest = max(most), not_finite = sum(poison);
  for (int64_t k = i; k < count; ++k) {
    largest = std::max(largest, std::fabs(x[k]));
    not_finite += x[k] * 0.0f;
  }
  *scale = largest / kLargest + not_finite;
  const float inverse = largest > kSmallest ? kLargest / largest : 0.0f;
  // Adding 1.5 * 2^23 rounds to the nearest integer, and leaves it in the low bits.
  constexpr float kMagic = 12582912.0f;
  for (int64_t k = 0; k < count; ++k) {
    const float shifted = x[k] * inverse + kMagic;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    codes[k] = static_cast<int16_t>(bits);
  }
}

inline Rounded space_for_rounded(const PanelWeights& w, int64_t rows) {
  const int64_t codes = divide_up(rows * w.in_features, 2);
  float* memory = scratch<2>(codes + rows * w.groups());
  return {reinterpret_cast<int16_t*>(memory), memory + codes};
}

inline void round_rows(const PanelWeights& w, int64_t begin, int64_t end, const float* x,
                       const Rounded& out) {
  for (int64_t g = begin * w.groups(); g < end * w.groups(); ++g)
    round_group(x + g * w.group, w.group, out.codes + g * w.group, out.scales + g);
}

// sums += the products of one group, for kRows rows and kVecs vectors of outputs.
template <int kRows, int kVecs>
inline void rounded_tile(int64_t pairs, const int16_t* x, int64_t x_stride, const int16_t* block,
                         const float* scales, const float* row_scales, int64_t row_scales_stride,
                         const char* ahead, float* sums) {
  IntVec acc[kRows][kVecs] = {};
  const auto add_pair = [&](int64_t p) __attribute__((always_inline)) {
    PairVec weight[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) weight[v] = load_pairs(block + (p * kPanel + v * kLanes) * 2);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const PairVec pair = splat_pair(x + r * x_stride + p * 2);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) acc[r][v] = dot_pairs(weight[v], pair, acc[r][v]);
    }
  };
  int64_t p = 0;
  for (; p + 2 <= pairs; p += 2) {
    __builtin_prefetch(ahead + p / 2 * kCacheLine);
    add_pair(p);
    add_pair(p + 1);
  }
  if (p < pairs) add_pair(p);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      float* sum = sums + r * kPanel + v * kLanes;
      const Vec scale = load(scales + v * kLanes) * row_scales[r * row_scales_stride];
      store(sum, fma(to_float(acc[r][v]), scale, load(sum)));
    }
}

template <int kRows, int kVecs>
inline void rounded_rows(int64_t rows, int64_t pairs, const int16_t* x, int64_t x_stride,
                         const int16_t* block, const float* scales, const float* row_scales,
                         int64_t row_scales_stride, const char* ahead, float* sums) {
  if (rows == kRows)
    rounded_tile<kRows, kVecs>(pairs, x, x_stride, block, scales, row_scales, row_scales_stride,
                               ahead, sums);
  else if constexpr (kRows > 1)
    rounded_rows<kRows - 1, kVecs>(rows, pairs, x, x_stride, block, scales, row_scales,
                                   row_scales_stride, ahead, sums);
}

// Few rows: weights go from memory through registers, several panels at a time.
template <int kRows, int kPanels>
inline void few_rounded_rows(const PanelWeights& w, int64_t panel, const Rounded& x, BlocksAhead& ahead,
                             float* y) {
  Vec sums[kRows][kPanels][kPanelVecs] = {};
  const int64_t panel_bytes = w.in_features * kPanel;
  const int64_t panel_scales = w.groups() * kPanel;
  const int8_t* codes = reinterpret_cast<const int8_t*>(w.codes) + panel * panel_bytes;
  const float* scales = w.scales + panel * panel_scales;
  for (int64_t g = 0; g < w.groups(); ++g) {
    IntVec acc[kRows][kPanels][kPanelVecs] = {};
    const char* block = ahead.take();
    for (int64_t k = g * w.group; k < (g + 1) * w.group; k += 2) {
      __builtin_prefetch(block + (k - g * w.group) * 16);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        const int8_t* code = codes + p * panel_bytes + k * kPanel;
        __builtin_prefetch(code + kAhead);
        PairVec weight[kPanelVecs];
        load_pairs_of_32(code, weight);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const PairVec pair = splat_pair(x.codes + r * w.in_features + k);
#pragma GCC unroll 8
          for (int v = 0; v < kPanelVecs; ++v)
            acc[r][p][v] = dot_pairs(weight[v], pair, acc[r][p][v]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const float row_scale = x.scales[r * w.groups() + g];
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 8
        for (int v = 0; v < kPanelVecs; ++v) {
          const Vec scale = load(scales + p * panel_scales + g * kPanel + v * kLanes) * row_scale;
          sums[r][p][v] = fma(to_float(acc[r][p][v]), scale, sums[r][p][v]);
        }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) {
      float values[kPanel];
      for (int v = 0; v < kPanelVecs; ++v) store(values + v * kLanes, sums[r][p][v]);
      store_panel(w, panel + p, values, y + r * w.out_features);
    }
}

template <int kRows, int kPanels = kMostPanels<kRows>>
void few_rounded_rows_chunk(const PanelWeights& w, int64_t panel, int64_t count, const Rounded& x,
                            BlocksAhead& ahead, float* y) {
  if (count == kPanels)
    few_rounded_rows<kRows, kPanels>(w, panel, x, ahead, y);
  else if constexpr (kPanels > 1)
    few_rounded_rows_chunk<kRows, kPanels - 1>(w, panel, count, x, ahead, y);
}

// One of the weights that an input is multiplied by.
struct RoundedProduct {
  PanelWeights w;
  float* y;                                 // (rows, w.out_features)
  const LowRankSlot* slots = nullptr;       // null where no adapter adds a low-rank term
  const OutputScaleSlot* scales = nullptr;  // null where none comes right after the low-rank terms
};

// The products of one input, their panels laid end to end.
struct RoundedProducts {
  const RoundedProduct* first;
  int64_t count;

  int64_t panels() const {
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) total += first[i].w.panels();
    return total;
  }

  // Panels that one thread takes in a row: the memory behind one is asked for while it is computed.
  int64_t neighbours() const {
    constexpr int64_t kTurns = 6;  // of each thread, for where one of them is late
    return divide_up(panels(), kTurns * at::get_num_threads());
  }

  // Calls run(product, begin, end) for the panels of each product that are among [begin, end).
  template <class Run>
  void for_each_part(int64_t begin, int64_t end, const Run& run) const {
    for (int64_t i = 0; i < count && end > 0; ++i) {
      const int64_t panels = first[i].w.panels();
      if (begin < panels) run(first[i], std::max<int64_t>(begin, 0), std::min(end, panels));
      begin -= panels, end -= panels;
    }
  }
};

// Of this thread, kept for its memory.
inline BlocksAhead& blocks_ahead() {
  thread_local BlocksAhead blocks;
  return blocks;
}

struct ProjectionTile {
  RowTile rows;
  float* hidden;
};

// As many as one tile holds: a weight is widened once in any case.
constexpr int kFewRows = kLanes == 16 ? kTileRows : 4;

template <int kRows = 1>
void few_rounded_rows_linears(const RoundedProducts& products, int64_t rows, const Rounded& x,
                              const PanelEdits* edits) {
  constexpr int64_t kPanels = kMostPanels<kRows>;
  if (rows == kRows)
    for_each_chunk(products.panels(), products.neighbours(), [&](int64_t begin, int64_t end) {
      products.for_each_part(begin, end, [&](const RoundedProduct& p, int64_t panel, int64_t stop) {
        const PanelEdits& own = edits[&p - products.first];
        BlocksAhead& ahead = blocks_ahead();
        own.begin(panel);
        for (; panel < stop; panel += kPanels) {
          const int64_t count = std::min<int64_t>(kPanels, stop - panel);
          ahead.clear();
          for (int64_t i = panel; i < panel + count; ++i) own.locate_factors(i, ahead);
          few_rounded_rows_chunk<kRows>(p.w, panel, count, x, ahead, p.y);
          for (int64_t i = panel; i < panel + count; ++i)
            own.apply(i, 0, rows, p.w.out_features, p.y);
        }
      });
    });
  else if constexpr (kRows < kFewRows)
    few_rounded_rows_linears<kRows + 1>(products, rows, x, edits);
}

// Many rows: a group of a panel is widened once into the first-level cache and used by all rows.
inline void many_rounded_rows(const PanelWeights& w, int64_t panel, int64_t rows, const int16_t* x,
                              const float* row_scales, BlocksAhead& ahead, float* y, float* sums) {
  constexpr int kVecs = std::min(2, kPanelVecs);
  alignas(64) int16_t block[kLongestRoundedGroup * kPanel];
  std::fill(sums, sums + rows * kPanel, 0.0f);
  const int8_t* codes = reinterpret_cast<const int8_t*>(w.codes) + panel * w.in_features * kPanel;
  const float* scales = w.scales + panel * w.groups() * kPanel;
  const int64_t height = divide_up(rows, divide_up(rows, kTileRows));
  for (int64_t g = 0; g < w.groups(); ++g) {
    for (int64_t k = 0; k < w.group; k += 2) {
      const int8_t* code = codes + (g * w.group + k) * kPanel;
      __builtin_prefetch(code + 2 * w.group * kPanel);  // the group after the next
      PairVec weight[kPanelVecs];
      load_pairs_of_32(code, weight);
#pragma GCC unroll 8
      for (int v = 0; v < kPanelVecs; ++v) store(block + (k * kPanel / 2 + v * kLanes) * 2, weight[v]);
    }
    for (int64_t r = 0; r < rows; r += height)
      for (int v = 0; v < kPanelVecs; v += kVecs)
        rounded_rows<kTileRows, kVecs>(
            std::min(height, rows - r), w.group / 2, x + r * w.in_features + g * w.group,
            w.in_features, block + v * kLanes * 2, scales + g * kPanel + v * kLanes,
            row_scales + r * w.groups() + g, w.groups(), ahead.take(),
            sums + r * kPanel + v * kLanes);
  }
  for (int64_t r = 0; r < rows; ++r) store_panel(w, panel, sums + r * kPanel, y + r * w.out_features);
}

// What adapters do to each product, and the tiles whose x A^T that takes, in memory of this thread.
struct StepEdits {
  std::vector<PanelEdits> of_product;
  std::vector<ProjectionTile> tiles;

  StepEdits(const RoundedProducts& products, const Run* runs, int64_t num_runs)
      : of_product(products.count) {
    int64_t width = 0;
    for (const RoundedProduct* p = products.first; p < products.first + products.count; ++p)
      for (const Run* run = runs; p->slots != nullptr && run < runs + num_runs; ++run)
        width += p->slots[run->slot].width() * (run->stop - run->start);
    float* hidden = scratch<3>(width);
    for (const RoundedProduct* p = products.first; p < products.first + products.count; ++p)
      for (const Run* run = runs; run < runs + num_runs; ++run) {
        PanelEdits& own = of_product[p - products.first];
        if (p->slots != nullptr && p->slots[run->slot].a != 0)
          hidden = add(own, p->slots[run->slot], *run, hidden);
        if (p->scales != nullptr && p->scales[run->slot].changes())
          own.add(ScaledRun{p->scales[run->slot], run->start, run->stop});
      }
  }

 private:
  // Returns the end of the run's x A^T.
  float* add(PanelEdits& own, const LowRankSlot& slot, const Run& run, float* hidden) {
    own.add(ProjectedRun{slot, run.start, run.stop, hidden});
    for (int64_t row = run.start; row < run.stop; row += kRowsPerTile) {
      const int64_t count = std::min<int64_t>(kRowsPerTile, run.stop - row);
      tiles.push_back({{slot, row, count}, hidden});
      hidden += count * slot.width();
    }
    return hidden;
  }
};

// Rounds the rows of x, and multiplies them by the first factors of their adapters.
inline Rounded prepare_rows(const PanelWeights& any, int64_t rows, const float* x,
                            const std::vector<ProjectionTile>& tiles) {
  constexpr int64_t kRowsAtOnce = 16;
  const Rounded rounded = space_for_rounded(any, rows);
  const int64_t num_tiles = tiles.size(), blocks = divide_up(rows, kRowsAtOnce);
  const int64_t chunk = std::max<int64_t>(1, divide_up(num_tiles, 4 * at::get_num_threads()));
  for_each_chunk(blocks + divide_up(num_tiles, chunk), 1, [&](int64_t item, int64_t) {
    if (item < blocks)
      return round_rows(any, item * kRowsAtOnce, std::min(rows, (item + 1) * kRowsAtOnce), x,
                        rounded);
    const int64_t begin = (item - blocks) * chunk, end = std::min(num_tiles, begin + chunk);
    for (int64_t i = begin; i < end; ++i) {
      const ProjectionTile& tile = tiles[i];
      // With two threads the chunk after the next is the likely one.
      const int64_t after = std::min(i + 1 < end ? i + 1 : i + 1 + chunk, num_tiles - 1);
      const char* ahead = reinterpret_cast<const char*>(tiles[after].rows.slot.a);
      const int64_t in = any.in_features;
      if (tile.rows.slot.is_bfloat16())
        project_rows<BFloat16>(tile.rows, in, x, in, ahead, tile.hidden);
      else
        project_rows<float>(tile.rows, in, x, in, ahead, tile.hidden);
    }
  });
  return rounded;
}

// x: (rows, in_features); weights of the same in_features and group; can_round(group). Adds to each
// product's rows the low-rank terms of their slots, and scales them.
inline void rounded_linears(const RoundedProducts& products, int64_t rows, const float* x,
                            const Run* runs, int64_t num_runs) {
  constexpr int64_t kRowBlock = 128;  // its sums and its slice of x stay in the caches
  const PanelWeights& any = products.first->w;
  const StepEdits edits(products, runs, num_runs);
  const Rounded rounded = prepare_rows(any, rows, x, edits.tiles);
  if (rows <= kFewRows)
    return few_rounded_rows_linears(products, rows, rounded, edits.of_product.data());
  const int64_t panels = products.panels();
  for (int64_t first = 0; first < rows; first += kRowBlock) {
    const int64_t count = std::min(kRowBlock, rows - first);
    for_each_chunk(panels, products.neighbours(), [&](int64_t begin, int64_t end) {
      alignas(64) float sums[kRowBlock * kPanel];
      products.for_each_part(begin, end, [&](const RoundedProduct& p, int64_t panel, int64_t stop) {
        const PanelEdits& own = edits.of_product[&p - products.first];
        BlocksAhead& ahead = blocks_ahead();
        own.begin(panel);
        for (; panel < stop; ++panel) {
          ahead.clear();
          own.locate_factors(panel, ahead);
          many_rounded_rows(p.w, panel, count, rounded.codes + first * any.in_features,
                            rounded.scales + first * any.groups(), ahead,
                            p.y + first * p.w.out_features, sums);
          own.apply(panel, first, first + count, p.w.out_features, p.y);
        }
      });
    });
  }
}

// The same for any group.
inline void multiply_int8(const RoundedProducts& products, int64_t rows, const float* x,
                          const Run* runs = nullptr, int64_t num_runs = 0) {
  if (rows == 0) return;
  const PanelWeights& any = products.first->w;
  if (can_round(any.group)) return rounded_linears(products, rows, x, runs, num_runs);
  for (const RoundedProduct* p = products.first; p < products.first + products.count; ++p) {
    panel_linear<Int8Codes>(p->w, rows, x, p->y);
    const int64_t out = p->w.out_features;
    const LowRankSum sum{p->slots, {any.in_features, out, any.in_features, out}, p->y};
    if (p->slots != nullptr) add_low_ranks(sum, runs, num_runs, x);
    if (p->scales != nullptr) apply_output_scale(p->scales, runs, num_runs, out, out, p->y);
  }
}

}  // namespace graftwork

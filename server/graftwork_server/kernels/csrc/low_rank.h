// y[m] += (x[m] A^T) B^T with another pair (A, B) per row, read in place through a table of slots.
//
// A is (rank, in_features); B is packed in panels of 32 outputs, (panels, rank, 32). Of a pair of
// Khatri-Rao products there are two of each, in blocks of 32 whose halves lie in turns (simd.h): A is
// (2, rank, padded in_features), B (panels, 2, rank, 32). Both are float32 or bfloat16; arithmetic is
// float32. The accumulation of a row is fixed: A's dot products by lanes of in_features, then a fixed
// tree; B over the rank ascending; one addition to y.
#pragma once

#include <vector>

#include "ahead.h"
#include "khatri_rao.h"
#include "parallel.h"
#include "runs.h"
#include "tile.h"

namespace graftwork {

constexpr int64_t kRowsPerTile = 8;

// One row of the slot table: (4,) int64.
struct LowRankSlot {
  int64_t a;       // address of A, 0 where the slot has no pair
  int64_t b;       // address of B
  int64_t rank;
  int64_t format;  // bit 0: bfloat16 factors, else float32; bit 1: Khatri-Rao products

  bool is_bfloat16() const { return format & 1; }
  bool is_product() const { return format & 2; }
  int64_t stored() const { return is_product() ? 2 * rank : rank; }    // rows of A in memory
  int64_t width() const { return is_product() ? rank * rank : rank; }  // of x A^T
  int64_t element() const { return is_bfloat16() ? sizeof(BFloat16) : sizeof(float); }  // bytes
};

struct LowRankShape {
  int64_t in_features;
  int64_t out_features;
  int64_t x_stride;  // floats between rows
  int64_t y_stride;
};

// What is added to one output.
struct LowRankSum {
  const LowRankSlot* slots;
  LowRankShape shape;
  float* y;
};

struct RowTile {
  LowRankSlot slot;
  int64_t row;
  int64_t rows;
};

// hidden[r][j] = x[r] . a[j]. With one row it asks for as much of `ahead` as it reads.
template <class T, int kRows, int kRanks>
inline void project_tile(int64_t in_features, const float* x, int64_t x_stride, const T* a,
                         const char* ahead, float* hidden, int64_t hidden_stride) {
  constexpr int64_t kBytes = kRanks * sizeof(T);
  Vec acc[kRows][kRanks] = {};
  const int64_t whole = in_features / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) {
    if constexpr (kRows == 1)
      prefetch_lines<std::max<int>(1, kBytes * kLanes / kCacheLine)>(ahead + k * kBytes);
    Vec factor[kRanks];
#pragma GCC unroll 8
    for (int j = 0; j < kRanks; ++j) factor[j] = load(a + j * in_features + k);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec value = load(x + r * x_stride + k);
#pragma GCC unroll 8
      for (int j = 0; j < kRanks; ++j) acc[r][j] = fma(value, factor[j], acc[r][j]);
    }
  }
  if (whole < in_features)
    for (int r = 0; r < kRows; ++r) {
      const Vec value = load_first(x + r * x_stride + whole, in_features - whole);
      for (int j = 0; j < kRanks; ++j)
        acc[r][j] = fma(value, load_first(a + j * in_features + whole, in_features - whole),
                        acc[r][j]);
    }
  for (int r = 0; r < kRows; ++r)
    for (int j = 0; j < kRanks; ++j) hidden[r * hidden_stride + j] = sum(acc[r][j]);
}

// hidden = x A^T for kRows rows
template <class T, int kRows, int kRanks>
void project(const LowRankSlot& slot, int64_t in_features, const float* x, int64_t x_stride,
             const char* ahead, float* hidden) {
  const T* a = reinterpret_cast<const T*>(slot.a);
  const auto project_some = [&]<int kSome>(int64_t j) {
    const int64_t start = j * in_features;
    project_tile<T, kRows, kSome>(in_features, x, x_stride, a + start, ahead + start * sizeof(T),
                                  hidden + j, slot.rank);
  };
  int64_t j = 0;
  for (; j + kRanks <= slot.rank; j += kRanks) project_some.template operator()<kRanks>(j);
  for (; j < slot.rank; ++j) project_some.template operator()<1>(j);
}

// hidden = x A^T; asks for `ahead`, memory that will be read next.
template <class T>
void project_rows(const RowTile& tile, int64_t in_features, const float* x, int64_t x_stride,
                  const char* ahead, float* hidden) {
  const LowRankSlot& slot = tile.slot;
  const T* a = reinterpret_cast<const T*>(slot.a);
  const auto project_some = [&]<int kRows, int kRanks>(int64_t r) {
    const float* first = x + (tile.row + r) * x_stride;
    float* out = hidden + r * slot.width();
    if (slot.is_product())
      project_products<T, kRows>(in_features, slot.rank, first, x_stride, a, ahead, out);
    else
      project<T, kRows, kRanks>(slot, in_features, first, x_stride, ahead, out);
  };
  int64_t r = 0;
  for (; r + 4 <= tile.rows; r += 4) project_some.template operator()<4, kTileRows / 3>(r);
  for (; r < tile.rows; ++r) project_some.template operator()<1, 8>(r);
}

// y[r] += hidden[r] b for kRows rows and one panel of b: `count` outputs.
template <class T, int kRows>
inline void expand_tile(int64_t rank, const float* hidden, const T* b, int64_t count, float* y,
                        int64_t y_stride) {
  constexpr int kVecs = kRows == 1 ? kFactorPanel / kLanes : 2;
  for (int64_t column = 0; column < count; column += kVecs * kLanes) {
    Vec acc[kRows][kVecs] = {};
    for (int64_t j = 0; j < rank; ++j) {
      Vec factor[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) factor[v] = load(b + j * kFactorPanel + column + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v)
          acc[r][v] = fma(factor[v], hidden[r * rank + j], acc[r][v]);
    }
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVecs; ++v) {
        const int64_t first = column + v * kLanes;
        add_to_first(y + r * y_stride + first, acc[r][v], count - first);
      }
  }
}

// y[r][panel] += hidden[r] b[panel] for some rows; y begins with the first of them.
template <class T>
inline void expand_panel(const LowRankSlot& slot, int64_t out_features, int64_t panel, int64_t rows,
                         const float* hidden, float* y, int64_t y_stride) {
  const int64_t first = panel * kFactorPanel;
  const int64_t count = std::min(kFactorPanel, out_features - first);
  const T* b = reinterpret_cast<const T*>(slot.b) + first * slot.stored();
  y += first;
  const auto expand = [&]<int kRows>(int64_t r) {
    const float* own = hidden + r * slot.width();
    if (slot.is_product())
      expand_products<T, kRows>(slot.rank, own, b, count, y + r * y_stride, y_stride);
    else
      expand_tile<T, kRows>(slot.rank, own, b, count, y + r * y_stride, y_stride);
  };
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) expand.template operator()<4>(r);
  for (; r < rows; ++r) expand.template operator()<1>(r);
}

// y += hidden B^T; asks for `ahead`, memory that will be read next.
template <class T>
void expand_rows(const RowTile& tile, const LowRankShape& shape, const float* hidden,
                 const char* ahead, float* y) {
  const int64_t panels = divide_up(shape.out_features, kFactorPanel);
  const int64_t bytes = tile.slot.stored() * kFactorPanel * sizeof(T);
  for (int64_t panel = 0; panel < panels; ++panel) {
    for (int64_t i = 0; i < bytes; i += kCacheLine) prefetch(ahead + panel * bytes + i);
    expand_panel<T>(tile.slot, shape.out_features, panel, tile.rows, hidden,
                    y + tile.row * shape.y_stride, shape.y_stride);
  }
}

// next: the tile after it.
template <class T>
void add_tile(const LowRankSum& sum, const RowTile& tile, const RowTile& next, const float* x,
              float* hidden) {
  project_rows<T>(tile, sum.shape.in_features, x, sum.shape.x_stride,
                  reinterpret_cast<const char*>(tile.slot.b), hidden);
  expand_rows<T>(tile, sum.shape, hidden, reinterpret_cast<const char*>(next.slot.a), sum.y);
}

inline void add_low_ranks(const LowRankSum& sum, const Run* runs, int64_t num_runs, const float* x) {
  std::vector<RowTile> tiles;
  for (int64_t i = 0; i < num_runs; ++i) {
    const LowRankSlot& slot = sum.slots[runs[i].slot];
    if (slot.a == 0) continue;
    for (int64_t row = runs[i].start; row < runs[i].stop; row += kRowsPerTile)
      tiles.push_back({slot, row, std::min<int64_t>(kRowsPerTile, runs[i].stop - row)});
  }
  const int64_t count = tiles.size();
  if (count == 0) return;
  const int64_t chunk = divide_up(count, 4 * at::get_num_threads());
  for_each_chunk(count, chunk, [&](int64_t begin, int64_t end) {
    std::vector<float> hidden;
    for (int64_t i = begin; i < end; ++i) {
      const RowTile& tile = tiles[i];
      // With two threads the chunk after the next is the likely one.
      const RowTile& next = tiles[std::min(i + 1 < end ? i + 1 : i + 1 + chunk, count - 1)];
      hidden.resize(tile.rows * tile.slot.width());
      if (tile.slot.is_bfloat16())
        add_tile<BFloat16>(sum, tile, next, x, hidden.data());
      else
        add_tile<float>(sum, tile, next, x, hidden.data());
    }
  });
}

}  // namespace graftwork

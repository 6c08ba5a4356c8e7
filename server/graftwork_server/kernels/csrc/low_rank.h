// y[m] += (x[m] A^T) B^T with another pair (A, B) per row, read in place through a table of slots.
//
// A is (rank, in_features); B is packed in panels of 32 outputs, (panels, rank, 32). Both are
// float32 or bfloat16; arithmetic is float32. The accumulation of a row is fixed: A's dot products
// by lanes of in_features, then a fixed tree; B over the rank ascending; one addition to y.
#pragma once

#include <vector>

#include "parallel.h"
#include "runs.h"
#include "tile.h"

namespace graftwork {

constexpr int64_t kFactorPanel = 32;
constexpr int64_t kRowsPerTile = 8;

// One row of the slot table: (4,) int64.
struct LowRankSlot {
  int64_t a;         // address of A, 0 where the slot has no pair
  int64_t b;         // address of B
  int64_t rank;
  int64_t bfloat16;  // 1: bfloat16 factors, 0: float32
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
  const LowRankSum* sum;
};

enum class Factors { kBoth, kFirst };

// Asks for the factors of a tile and then of the next in the order in which they are read, leaving
// out those of the tile before, which are in the caches.
class FactorsAhead {
 public:
  static constexpr int64_t kLine = 64;

  // previous: null where a thread begins; any other tile has asked for the beginning of `tile`'s.
  FactorsAhead(const RowTile* previous, const RowTile& tile, const RowTile& next,
               Factors wanted = Factors::kBoth)
      : wanted_(wanted) {
    const bool is_new = previous == nullptr || previous->slot.a != tile.slot.a;
    if (is_new) add(tile);
    if (next.slot.a != tile.slot.a) add(next);
    next_ = spans_[0].begin;
    if (previous == nullptr)
      ask(kLead);
    else if (is_new)
      skip(kLead * kLine);
  }

  void ask(int64_t lines) {
    for (; lines > 0 && span_ < count_; --lines) {
      __builtin_prefetch(next_);
      skip(kLine);
    }
  }

 private:
  // How far to ask ahead of what is read: 16 KB. Eight ranks are read side by side, so that
  // much less comes too late; more falls out of the caches again.
  static constexpr int64_t kLead = 256;

  struct Span {
    const char* begin;
    const char* end;
  };

  void add(const RowTile& tile) {
    const LowRankShape& shape = tile.sum->shape;
    const int64_t bytes = tile.slot.bfloat16 ? sizeof(BFloat16) : sizeof(float);
    const char* a = reinterpret_cast<const char*>(tile.slot.a);
    const char* b = reinterpret_cast<const char*>(tile.slot.b);
    const int64_t outputs = divide_up(shape.out_features, kFactorPanel) * kFactorPanel;
    spans_[count_++] = {a, a + tile.slot.rank * shape.in_features * bytes};
    if (wanted_ == Factors::kBoth) spans_[count_++] = {b, b + tile.slot.rank * outputs * bytes};
  }

  void skip(int64_t bytes) {
    next_ += bytes;
    while (span_ < count_ && next_ >= spans_[span_].end) {
      const int64_t beyond = next_ - spans_[span_].end;
      ++span_;
      next_ = span_ < count_ ? spans_[span_].begin + beyond / kLine * kLine : nullptr;
    }
  }

  const Factors wanted_;
  Span spans_[4] = {};
  int count_ = 0;
  int span_ = 0;
  const char* next_ = nullptr;
};

// hidden[r][j] = x[r] . a[j]
template <class T, int kRows, int kRanks>
inline void project_tile(int64_t in_features, const float* x, int64_t x_stride, const T* a,
                         FactorsAhead& ahead, float* hidden, int64_t hidden_stride) {
  constexpr int64_t kLines = kRanks * kLanes * sizeof(T) / FactorsAhead::kLine;
  Vec acc[kRows][kRanks] = {};
  const int64_t whole = in_features / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) {
    if constexpr (kRows == 1) ahead.ask(std::max<int64_t>(kLines, 1));
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
void project(const LowRankSlot& slot, const LowRankShape& shape, const float* x,
             FactorsAhead& ahead, float* hidden) {
  const T* a = reinterpret_cast<const T*>(slot.a);
  const int64_t step = kRanks * shape.in_features;
  int64_t j = 0;
  for (; j + kRanks <= slot.rank; j += kRanks, a += step)
    project_tile<T, kRows, kRanks>(shape.in_features, x, shape.x_stride, a, ahead, hidden + j,
                                   slot.rank);
  for (; j < slot.rank; ++j, a += shape.in_features)
    project_tile<T, kRows, 1>(shape.in_features, x, shape.x_stride, a, ahead, hidden + j,
                              slot.rank);
}

template <class T>
void project_rows(const RowTile& tile, const LowRankShape& shape, const float* x,
                  FactorsAhead& ahead, float* hidden) {
  int64_t r = 0;
  for (; r + 4 <= tile.rows; r += 4)
    project<T, 4, kTileRows / 3>(tile.slot, shape, x + (tile.row + r) * shape.x_stride,
                                 ahead, hidden + r * tile.slot.rank);
  for (; r < tile.rows; ++r)
    project<T, 1, 8>(tile.slot, shape, x + (tile.row + r) * shape.x_stride, ahead,
                     hidden + r * tile.slot.rank);
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
        float* out = y + r * y_stride + column + v * kLanes;
        const int64_t left = std::min<int64_t>(kLanes, count - column - v * kLanes);
        if (left == kLanes)
          store(out, load(out) + acc[r][v]);
        else if (left > 0)
          store_first(out, load_first(out, left) + acc[r][v], left);
      }
  }
}

// y[r][panel] += hidden[r] b[panel] for some rows; y begins with the first of them.
template <class T>
inline void expand_panel(const LowRankSlot& slot, int64_t out_features, int64_t panel, int64_t rows,
                         const float* hidden, float* y, int64_t y_stride) {
  const int64_t first = panel * kFactorPanel;
  const int64_t count = std::min(kFactorPanel, out_features - first);
  const T* b = reinterpret_cast<const T*>(slot.b) + first * slot.rank;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    expand_tile<T, 4>(slot.rank, hidden + r * slot.rank, b, count, y + r * y_stride + first,
                      y_stride);
  for (; r < rows; ++r)
    expand_tile<T, 1>(slot.rank, hidden + r * slot.rank, b, count, y + r * y_stride + first,
                      y_stride);
}

// y += hidden B^T
template <class T>
void expand_rows(const RowTile& tile, const LowRankShape& shape, const float* hidden,
                 FactorsAhead& ahead, float* y) {
  const int64_t panels = divide_up(shape.out_features, kFactorPanel);
  // While A is read by four rows at a time nothing is asked for.
  const int64_t a_share = tile.rows >= 4 ? divide_up(shape.in_features, panels) : 0;
  const int64_t lines =
      divide_up(tile.slot.rank * (kFactorPanel + a_share) * sizeof(T), FactorsAhead::kLine);
  for (int64_t panel = 0; panel < panels; ++panel) {
    ahead.ask(lines);
    expand_panel<T>(tile.slot, shape.out_features, panel, tile.rows, hidden,
                    y + tile.row * shape.y_stride, shape.y_stride);
  }
}

template <class T>
void add_tile(const RowTile& tile, const float* x, FactorsAhead& ahead, float* hidden) {
  project_rows<T>(tile, tile.sum->shape, x, ahead, hidden);
  expand_rows<T>(tile, tile.sum->shape, hidden, ahead, tile.sum->y);
}

inline std::vector<RowTile> row_tiles(const LowRankSum* sums, int64_t num_sums, const Run* runs,
                                      int64_t num_runs) {
  std::vector<RowTile> tiles;
  for (const LowRankSum* sum = sums; sum < sums + num_sums; ++sum)
    for (int64_t i = 0; i < num_runs; ++i) {
      const LowRankSlot& slot = sum->slots[runs[i].slot];
      if (slot.a == 0) continue;
      for (int64_t row = runs[i].start; row < runs[i].stop; row += kRowsPerTile)
        tiles.push_back({slot, row, std::min<int64_t>(kRowsPerTile, runs[i].stop - row), sum});
    }
  return tiles;
}

// One input, several outputs.
inline void add_low_ranks(const LowRankSum* sums, int64_t num_sums, const Run* runs,
                          int64_t num_runs, const float* x) {
  const std::vector<RowTile> tiles = row_tiles(sums, num_sums, runs, num_runs);
  const int64_t count = tiles.size();
  if (count == 0) return;
  const int64_t chunk = divide_up(count, 4 * at::get_num_threads());
  for_each_chunk(count, chunk, [&](int64_t begin, int64_t end) {
    std::vector<float> hidden;
    for (int64_t i = begin; i < end; ++i) {
      const RowTile& tile = tiles[i];
      // With two threads the chunk after the next is the likely one.
      const RowTile& next = tiles[std::min(i + 1 < end ? i + 1 : i + 1 + chunk, count - 1)];
      FactorsAhead ahead(i > begin ? &tiles[i - 1] : nullptr, tile, next);
      hidden.resize(tile.rows * tile.slot.rank);
      if (tile.slot.bfloat16)
        add_tile<BFloat16>(tile, x, ahead, hidden.data());
      else
        add_tile<float>(tile, x, ahead, hidden.data());
    }
  });
}

}  // namespace graftwork

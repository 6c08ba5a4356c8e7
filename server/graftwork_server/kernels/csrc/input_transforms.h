// What adapters make of the input of a linear module: scaled features, or blocks of features each
// times a matrix, one such rotation after another, each in an order of its own.
#pragma once

#include <algorithm>
#include <vector>

#include "ahead.h"
#include "parallel.h"
#include "runs.h"
#include "scratch.h"
#include "tile.h"

namespace graftwork {

// One row of the slot table: (5,) int64.
struct InputSlot {
  const float* scale;        // (features,), or 0
  const int64_t* rotations;  // BlockRotation structs in order, or 0
  int64_t num_rotations;
  const void* data;  // what is read of the rotations for each row
  int64_t bytes;

  bool changes() const { return scale != nullptr || num_rotations > 0; }
};

struct BlockRotation {
  const void* change;    // the matrices minus the identity: (blocks, size, pad(size)), or, small ones,
                         // (size, blocks * size): at d what input j ^ d of a block adds to output j
  const int64_t* order;  // (features,), or 0
  int64_t blocks;        // 1: the same matrix for all
  int64_t size, bfloat16;
  int64_t small;         // the second layout
};

// x += x * change for blocks of 2 or 4, whose inputs come from neighbouring lanes.
template <class T, int kSize>
inline void rotate_small_blocks(const BlockRotation& r, int64_t features, float* x) {
  const T* change = static_cast<const T*>(r.change);
  for (int64_t k = 0; k < features; k += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, features - k);
    const bool whole = count == kLanes;
    const Vec v = whole ? load(x + k) : load_first(x + k, count);
    const auto factor = [&](int d) {
      const T* p = change + d * features + k;
      return whole ? load(p) : load_first(p, count);
    };
    Vec acc = fma(v, factor(0), Vec{});
    acc = fma(swap_lanes<1>(v, Lanes{}), factor(1), acc);
    if constexpr (kSize == 4) {
      acc = fma(swap_lanes<2>(v, Lanes{}), factor(2), acc);
      acc = fma(swap_lanes<3>(v, Lanes{}), factor(3), acc);
    }
    if (whole)
      store(x + k, v + acc);
    else
      store_first(x + k, v + acc, count);
  }
}

template <class T>
inline void rotate_blocks(const BlockRotation& r, int64_t features, int64_t rows, float* x,
                          Ahead& ahead) {
  const int64_t width = pad(r.size);
  float* added = scratch<1>(rows * width);
  for (int64_t first = 0, block = 0; first < features; first += r.size, ++block) {
    const T* change =
        static_cast<const T*>(r.change) + (r.blocks == 1 ? 0 : block * r.size * width);
    ahead.step();
    std::fill(added, added + rows * width, 0.0f);
    multiply(rows, r.size, width, x + first, features, change, width, added, width);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t j = 0; j < r.size; ++j)
        x[row * features + first + j] += added[row * width + j];
  }
}

// In place on (rows, features), contiguous.
template <class T>
void rotate(const BlockRotation& r, int64_t features, int64_t rows, float* x, Ahead& ahead) {
  if (!r.small) return rotate_blocks<T>(r, features, rows, x, ahead);
  for (int64_t row = 0; row < rows; ++row)
    if (r.size == 2)
      rotate_small_blocks<T, 2>(r, features, x + row * features);
    else
      rotate_small_blocks<T, 4>(r, features, x + row * features);
}

// In place on (rows, features), contiguous; a rotation without an order needs no copies.
inline void rotate_rows(const BlockRotation& r, int64_t features, int64_t rows, float* x,
                        Ahead& ahead) {
  const int64_t count = rows * features;
  float* ordered = x;
  if (r.order != nullptr) {
    ordered = scratch<0>(count);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < features; ++i)
        ordered[row * features + i] = x[row * features + r.order[i]];
  }
  if (r.bfloat16)
    rotate<BFloat16>(r, features, rows, ordered, ahead);
  else
    rotate<float>(r, features, rows, ordered, ahead);
  if (r.order != nullptr)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < features; ++i)
        x[row * features + r.order[i]] = ordered[row * features + i];
}

inline void transform_tile(const InputSlot& slot, int64_t features, int64_t rows, float* x,
                           Ahead ahead) {
  if (slot.scale != nullptr)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < features; ++i) x[row * features + i] *= slot.scale[i];
  const BlockRotation* rotations = reinterpret_cast<const BlockRotation*>(slot.rotations);
  int64_t steps = 0;
  for (int64_t i = 0; i < slot.num_rotations; ++i) steps += features / rotations[i].size;
  ahead.spread(steps);
  for (int64_t i = 0; i < slot.num_rotations; ++i)
    rotate_rows(rotations[i], features, rows, x, ahead);
}

struct InputTile {
  const InputSlot* slot;
  int64_t row;
  int64_t rows;
};

// x: (rows, features), contiguous, changed in place.
inline void transform_inputs(const InputSlot* slots, const Run* runs, int64_t count,
                             int64_t features, float* x) {
  constexpr int64_t kHeight = 8;
  std::vector<InputTile> tiles;
  for (int64_t i = 0; i < count; ++i) {
    const InputSlot& slot = slots[runs[i].slot];
    if (!slot.changes()) continue;
    for (int64_t row = runs[i].start; row < runs[i].stop; row += kHeight)
      tiles.push_back({&slot, row, std::min<int64_t>(kHeight, runs[i].stop - row)});
  }
  const int64_t chunk = std::max<int64_t>(1, divide_up(tiles.size(), 8 * at::get_num_threads()));
  const int64_t last = static_cast<int64_t>(tiles.size()) - 1;
  for_each_chunk(tiles.size(), chunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const InputTile& tile = tiles[i];
      // With two threads the chunk after the next is the likely one.
      const InputTile& next = tiles[std::min(i + 1 < end ? i + 1 : i + 1 + chunk, last)];
      transform_tile(*tile.slot, features, tile.rows, x + tile.row * features,
                     Ahead(next.slot->data, next.slot != tile.slot ? next.slot->bytes : 0));
    }
  });
}

}  // namespace graftwork

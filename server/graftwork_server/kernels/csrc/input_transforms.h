// What adapters make of the input of a linear module: scaled features, or blocks of features each
// times a matrix, one such rotation after another, each in an order of its own.
#pragma once

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "runs.h"
#include "scratch.h"
#include "tile.h"

namespace graftwork {

struct InputSlot {
  const float* scale;          // (features,), or 0
  const int64_t* rotations;    // BlockRotation structs in order, or 0
  int64_t num_rotations;
};

struct BlockRotation {
  const void* change;    // the matrices minus the identity: (blocks, size, pad(size)), or, small ones,
                         // (size, blocks * size): at d what input j ^ d of a block adds to output j
  const int64_t* order;  // (features,), or 0
  int64_t blocks;        // 1: the same matrix for all
  int64_t size, bfloat16;
  int64_t small;         // the second layout
};

// out = in + in * change for blocks of 2 or 4, whose inputs come from neighbouring lanes.
template <class T, int kSize>
inline void rotate_small_blocks(const BlockRotation& r, int64_t features, const float* in,
                                float* out) {
  const T* change = static_cast<const T*>(r.change);
  for (int64_t k = 0; k < features; k += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, features - k);
    const bool whole = count == kLanes;
    const Vec x = whole ? load(in + k) : load_first(in + k, count);
    const auto factor = [&](int d) {
      const T* p = change + d * features + k;
      return whole ? load(p) : load_first(p, count);
    };
    Vec acc = fma(x, factor(0), Vec{});
    acc = fma(swap_lanes<1>(x, Lanes{}), factor(1), acc);
    if constexpr (kSize == 4) {
      acc = fma(swap_lanes<2>(x, Lanes{}), factor(2), acc);
      acc = fma(swap_lanes<3>(x, Lanes{}), factor(3), acc);
    }
    if (whole)
      store(out + k, x + acc);
    else
      store_first(out + k, x + acc, count);
  }
}

template <class T>
inline void rotate_blocks(const BlockRotation& r, int64_t features, int64_t rows, const float* in,
                          float* out) {
  const int64_t width = pad(r.size);
  float* added = scratch<1>(rows * width);
  for (int64_t first = 0, block = 0; first < features; first += r.size, ++block) {
    const T* change =
        static_cast<const T*>(r.change) + (r.blocks == 1 ? 0 : block * r.size * width);
    std::fill(added, added + rows * width, 0.0f);
    multiply(rows, r.size, width, in + first, features, change, width, added, width);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t j = 0; j < r.size; ++j)
        out[row * features + first + j] = in[row * features + first + j] + added[row * width + j];
  }
}

template <class T>
void rotate(const BlockRotation& r, int64_t features, int64_t rows, const float* in, float* out) {
  if (!r.small) return rotate_blocks<T>(r, features, rows, in, out);
  for (int64_t row = 0; row < rows; ++row)
    if (r.size == 2)
      rotate_small_blocks<T, 2>(r, features, in + row * features, out + row * features);
    else
      rotate_small_blocks<T, 4>(r, features, in + row * features, out + row * features);
}

// In place on (rows, features), contiguous.
inline void rotate_rows(const BlockRotation& r, int64_t features, int64_t rows, float* x) {
  float* in = scratch<0>(2 * rows * features);
  float* out = in + rows * features;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < features; ++i)
      in[row * features + i] = x[row * features + (r.order ? r.order[i] : i)];
  if (r.bfloat16)
    rotate<BFloat16>(r, features, rows, in, out);
  else
    rotate<float>(r, features, rows, in, out);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < features; ++i)
      x[row * features + (r.order ? r.order[i] : i)] = out[row * features + i];
}

inline void transform_tile(const InputSlot& slot, int64_t features, int64_t rows, float* x) {
  if (slot.scale != nullptr)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < features; ++i) x[row * features + i] *= slot.scale[i];
  const BlockRotation* rotations = reinterpret_cast<const BlockRotation*>(slot.rotations);
  for (int64_t i = 0; i < slot.num_rotations; ++i)
    rotate_rows(rotations[i], features, rows, x);
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
    if (slot.scale == nullptr && slot.num_rotations == 0) continue;
    for (int64_t row = runs[i].start; row < runs[i].stop; row += kHeight)
      tiles.push_back({&slot, row, std::min<int64_t>(kHeight, runs[i].stop - row)});
  }
  const int64_t chunk = divide_up(tiles.size(), 4 * at::get_num_threads());
  for_each_chunk(tiles.size(), std::max<int64_t>(chunk, 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      transform_tile(*tiles[i].slot, features, tiles[i].rows, x + tiles[i].row * features);
  });
}

}  // namespace graftwork

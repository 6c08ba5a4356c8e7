// Other output rows of a norm or of a whole sublayer, for the slots of a step.
#pragma once

#include <cmath>

#include "elementwise.h"
#include "low_rank.h"

namespace graftwork {

// One row of the slot table: (1,) int64.
struct NormSlot {
  const float* weight;  // (features,), 0 where the slot keeps the base's
};

// The rows' RMS norm with the weights of their slots.
inline void replace_rms_norm(const NormSlot* slots, const Run* runs, int64_t count, float offset,
                             float eps, int64_t features, const float* x, float* y) {
  for (int64_t i = 0; i < count; ++i) {
    const float* weight = slots[runs[i].slot].weight;
    if (weight == nullptr) continue;
    for_each_chunk(runs[i].stop - runs[i].start, 32, [&](int64_t begin, int64_t end) {
      for (int64_t row = runs[i].start + begin; row < runs[i].start + end; ++row)
        rms_norm_row(x + row * features, weight, offset, eps, features, y + row * features);
    });
  }
}

// One row of the slot table: (7,) int64.
struct BottleneckSlot {
  LowRankSlot factors;     // down (size, features) and up in panels
  const float* down_bias;  // (size,)
  const float* up_bias;    // (features,)
  int64_t activation;
};

enum Activation : int64_t { kGelu, kGeluTanh, kLeakyRelu, kRelu, kSigmoid, kSilu, kTanh };

inline float activate(int64_t activation, float x) {
  switch (activation) {
    case kGelu:
      return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
    case kGeluTanh:
      return 0.5f * x * (1.0f + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case kLeakyRelu:
      return x > 0.0f ? x : 0.01f * x;
    case kRelu:
      return x > 0.0f ? x : 0.0f;
    case kSigmoid:
      return 1.0f / (1.0f + std::exp(-x));
    case kSilu:
      return x / (1.0f + std::exp(-x));
    default:
      return std::tanh(x);
  }
}

struct BottleneckTile {
  const BottleneckSlot* slot;
  RowTile rows;
};

template <class T>
void add_bottleneck_tile(const BottleneckTile& tile, const BottleneckTile& next,
                         const LowRankShape& shape, float* y, float* hidden) {
  const BottleneckSlot& slot = *tile.slot;
  const int64_t rank = slot.factors.rank;
  project_rows<T>(tile.rows, shape.in_features, y, shape.x_stride,
                  reinterpret_cast<const char*>(slot.factors.b), hidden);
  for (int64_t row = 0; row < tile.rows.rows; ++row)
    for (int64_t j = 0; j < rank; ++j)
      hidden[row * rank + j] = activate(slot.activation, hidden[row * rank + j] + slot.down_bias[j]);
  expand_rows<T>(tile.rows, shape, hidden,
                 reinterpret_cast<const char*>(next.slot->factors.a), y);
  for (int64_t row = tile.rows.row; row < tile.rows.row + tile.rows.rows; ++row)
    for (int64_t n = 0; n < shape.out_features; ++n)
      y[row * shape.y_stride + n] += slot.up_bias[n];
}

// y += f(y down^T + down_bias) up^T + up_bias, in place.
inline void add_bottlenecks(const BottleneckSlot* slots, const Run* runs, int64_t count,
                            int64_t features, int64_t stride, float* y) {
  const LowRankShape shape{features, features, stride, stride};
  std::vector<BottleneckTile> tiles;
  for (int64_t i = 0; i < count; ++i) {
    const BottleneckSlot& slot = slots[runs[i].slot];
    if (slot.factors.a == 0) continue;
    for (int64_t row = runs[i].start; row < runs[i].stop; row += kRowsPerTile)
      tiles.push_back(
          {&slot, {slot.factors, row, std::min<int64_t>(kRowsPerTile, runs[i].stop - row)}});
  }
  if (tiles.empty()) return;
  const int64_t num_tiles = tiles.size();
  const int64_t chunk = divide_up(num_tiles, 8 * at::get_num_threads());
  for_each_chunk(num_tiles, chunk, [&](int64_t begin, int64_t end) {
    std::vector<float> hidden;
    for (int64_t i = begin; i < end; ++i) {
      const BottleneckTile& tile = tiles[i];
      const BottleneckTile& next = tiles[std::min(i + 1 < end ? i + 1 : i + 1 + chunk, num_tiles - 1)];
      hidden.resize(tile.rows.rows * tile.slot->factors.rank);
      if (tile.slot->factors.is_bfloat16())
        add_bottleneck_tile<BFloat16>(tile, next, shape, y, hidden.data());
      else
        add_bottleneck_tile<float>(tile, next, shape, y, hidden.data());
    }
  });
}

}  // namespace graftwork

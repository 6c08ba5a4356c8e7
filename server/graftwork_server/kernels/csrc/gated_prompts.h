// Adds to the heads' output what they see in a gated prompt: gate * softmax(q keys^T scale) values.
#pragma once

#include <algorithm>
#include <cmath>

#include "parallel.h"
#include "runs.h"
#include "scratch.h"
#include "tile.h"

namespace graftwork {

// One row of the slot table: (4,) int64.
struct GatedPromptSlot {
  const float* keys;    // (kv_heads, head_dim, pad(length)): turned around; 0 where there is none
  const float* values;  // (kv_heads, length, pad(head_dim))
  const float* gate;    // (1,)
  int64_t length;
};

struct GatedPromptShape {
  int64_t heads, kv_heads, head_dim;
  int64_t q_stride, q_head_stride;  // floats
  float scale;
};

// The heads of one row that share a key/value head.
inline void attend_to_prompt(const GatedPromptSlot& slot, const GatedPromptShape& s, int64_t kv_head,
                             const float* q, float* out) {
  const int64_t group = s.heads / s.kv_heads, length = pad(slot.length), dim = pad(s.head_dim);
  float* scores = scratch<0>(group * (length + dim));
  float* terms = scores + group * length;
  std::fill(scores, terms + group * dim, 0.0f);
  multiply(group, s.head_dim, length, q, s.q_head_stride,
           slot.keys + kv_head * s.head_dim * length, length, scores, length);
  for (int64_t h = 0; h < group; ++h) {
    float* row = scores + h * length;
    float most = row[0] * s.scale, total = 0.0f;
    for (int64_t i = 0; i < slot.length; ++i) most = std::max(most, row[i] *= s.scale);
    for (int64_t i = 0; i < slot.length; ++i) total += row[i] = std::exp(row[i] - most);
    for (int64_t i = 0; i < slot.length; ++i) row[i] *= *slot.gate / total;
  }
  multiply(group, slot.length, dim, scores, length, slot.values + kv_head * slot.length * dim, dim,
           terms, dim);
  for (int64_t h = 0; h < group; ++h)
    for (int64_t i = 0; i < s.head_dim; ++i) out[h * s.head_dim + i] += terms[h * dim + i];
}

// out: (rows, heads, head_dim), contiguous.
inline void add_gated_prompts(const GatedPromptSlot* slots, const Run* runs, int64_t count,
                              const GatedPromptShape& s, const float* q, float* out) {
  const int64_t group = s.heads / s.kv_heads;
  for_each_chunk(count, std::max<int64_t>(1, divide_up(count, 4)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const GatedPromptSlot& slot = slots[runs[i].slot];
      if (slot.keys == nullptr) continue;
      for (int64_t row = runs[i].start; row < runs[i].stop; ++row)
        for (int64_t head = 0; head < s.kv_heads; ++head)
          attend_to_prompt(slot, s, head, q + row * s.q_stride + head * group * s.q_head_stride,
                           out + (row * s.heads + head * group) * s.head_dim);
    }
  });
}

}  // namespace graftwork

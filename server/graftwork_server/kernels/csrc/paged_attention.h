// Causal attention over a paged key/value cache, keys and values read in place.
//
// Work is cut by sequence, key/value head and block of queries. The query heads that share a
// key/value head are rows of one tile. Keys are stored turned around, (head_dim, block_size) in each
// block, so that scores are computed for many keys at once. The softmax is online over blocks of 64
// keys that are aligned to position 0, so a query's result depends on its own keys only: masked keys
// add exact zeros, fully masked blocks change nothing, and neither neighbours nor the chunking of the
// prompt can change a bit.
#pragma once

#include <limits>
#include <vector>

#include "parallel.h"
#include "tile.h"

namespace graftwork {

constexpr int64_t kKeyBlock = 64;
constexpr int64_t kQueryRows = 48;  // rows (query, head) of a tile, at least one query

struct AttentionShape {
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t block_size;
  int64_t max_blocks;       // row length of block_tables
  int64_t q_stride;         // floats between tokens
  int64_t q_head_stride;    // floats between heads
  float scale;
  int64_t sliding_window;   // 0: none
  float softcap;            // 0: none

  int64_t group() const { return heads / kv_heads; }
  int64_t padded_dim() const { return divide_up(head_dim, kLanes) * kLanes; }
  int64_t block_floats() const { return kv_heads * block_size * head_dim; }
};

// Queries [first, stop) of one sequence on one key/value head.
struct AttentionItem {
  int64_t kv_head;
  int64_t token;         // index of the first query in q
  int64_t queries;
  int64_t position;      // position of the first query
  const int32_t* blocks; // row of block_tables
};

struct AttentionScratch {
  std::vector<float> q, keys, scores, acc, values, max, sum;

  void fit(const AttentionShape& s) {
    const int64_t rows = std::max(kQueryRows, s.group());
    grow(q, rows * s.padded_dim());
    grow(keys, s.padded_dim() * kKeyBlock);
    grow(scores, rows * kKeyBlock);
    grow(acc, rows * s.padded_dim());
    grow(values, kKeyBlock * s.padded_dim());
    grow(max, rows);
    grow(sum, rows);
  }

  static void grow(std::vector<float>& buffer, size_t size) {
    if (buffer.size() < size) buffer.resize(size);
  }
};

inline const float* cache_row(const AttentionShape& s, const AttentionItem& item,
                              const float* cache, int64_t position) {
  const int64_t block = item.blocks[position / s.block_size];
  return cache + block * s.block_floats() +
         (item.kv_head * s.block_size + position % s.block_size) * s.head_dim;
}

// Where vectors of keys lie: that of dimension d is at start[v] + d * stride, kLanes keys wide.
struct KeyVectors {
  static constexpr int64_t kCount = kKeyBlock / kLanes;

  const float* start[kCount];
  int64_t stride;
};

// Of the keys from `first` on. Where blocks do not hold whole vectors, the keys are copied first. Keys
// past the end of the sequence are anything; their columns are masked.
inline KeyVectors key_vectors(const AttentionShape& s, const AttentionItem& item,
                              const float* k_cache, int64_t first, int64_t count, float* copied) {
  const auto key = [&](int64_t position) {
    return k_cache + item.blocks[position / s.block_size] * s.block_floats() +
           item.kv_head * s.block_size * s.head_dim + position % s.block_size;
  };
  KeyVectors out;
  if (s.block_size % kLanes == 0) {
    out.stride = s.block_size;
    for (int64_t j = 0; j < count; j += kLanes) out.start[j / kLanes] = key(first + j);
    return out;
  }
  out.stride = kKeyBlock;
  for (int64_t j = 0; j < count; ++j) {
    const float* from = key(first + j);
    for (int64_t d = 0; d < s.head_dim; ++d) copied[d * kKeyBlock + j] = from[d * s.block_size];
  }
  for (int64_t v = 0; v < KeyVectors::kCount; ++v) out.start[v] = copied + v * kLanes;
  return out;
}

// Turns the scores of a row into weights and moves its running maximum and sum.
// Keys [low, high) of the block are visible. Returns the factor of what was accumulated before.
inline float softmax_row(const AttentionShape& s, float* scores, int64_t width, int64_t low,
                         int64_t high, float* running_max, float* running_sum) {
  IntVec lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  const Vec hidden = splat(-std::numeric_limits<float>::infinity());
  Vec largest = hidden;
  for (int64_t j = 0; j < width; j += kLanes) {
    Vec value = load(scores + j) * s.scale;
    if (s.softcap > 0.0f) value = s.softcap * tanh(value / s.softcap);
    if (j < low || j + kLanes > high) {
      const IntVec key = lane + int32_t(j);
      value = (key >= int32_t(low)) & (key < int32_t(high)) ? value : hidden;
    }
    largest = maximum(largest, value);
    store(scores + j, value);
  }
  const float before = *running_max;
  const float after = std::max(before, max(largest));
  Vec total{};
  for (int64_t j = 0; j < width; j += kLanes) {
    // The difference is -inf where hidden, and exp gives exactly zero there.
    const Vec weight = exp(load(scores + j) - after);
    total += weight;
    store(scores + j, weight);
  }
  const float factor = exp(splat(before - after))[0];
  *running_max = after;
  *running_sum = *running_sum * factor + sum(total);
  return factor;
}

inline void add_values(const AttentionShape& s, const AttentionItem& item, const float* v_cache,
                       int64_t first, int64_t count, int64_t rows, AttentionScratch& scratch) {
  const int64_t dim = s.padded_dim();
  for (int64_t j = 0; j < count;) {
    const int64_t offset = (first + j) % s.block_size;
    const int64_t keys = std::min(count - j, s.block_size - offset);
    const float* values = cache_row(s, item, v_cache, first + j);
    if (dim != s.head_dim) {  // a vector load must not run past the cache
      for (int64_t i = 0; i < keys; ++i)
        std::memcpy(scratch.values.data() + i * dim, values + i * s.head_dim, s.head_dim * 4);
      values = scratch.values.data();
    }
    multiply(rows, keys, dim, scratch.scores.data() + j, kKeyBlock, values, dim,
             scratch.acc.data(), dim);
    j += keys;
  }
}

inline void attend(const AttentionShape& s, const AttentionItem& item, const float* q,
                   const float* k_cache, const float* v_cache, float* out,
                   AttentionScratch& scratch) {
  const int64_t group = s.group(), dim = s.padded_dim(), rows = item.queries * group;
  const int64_t end = item.position + item.queries;  // keys of the last query
  const int64_t window = s.sliding_window > 0 ? s.sliding_window : end;
  const int64_t begin = std::max<int64_t>(0, item.position + 1 - window);
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = q + (item.token + r / group) * s.q_stride +
                       (item.kv_head * group + r % group) * s.q_head_stride;
    std::memcpy(scratch.q.data() + r * dim, row, s.head_dim * 4);
    scratch.max[r] = -std::numeric_limits<float>::infinity();
    scratch.sum[r] = 0.0f;
  }
  std::fill(scratch.acc.begin(), scratch.acc.begin() + rows * dim, 0.0f);
  for (int64_t first = begin / kKeyBlock * kKeyBlock; first < end; first += kKeyBlock) {
    const int64_t count = std::min(kKeyBlock, end - first);
    const int64_t width = divide_up(count, kLanes) * kLanes;
    const KeyVectors keys = key_vectors(s, item, k_cache, first, count, scratch.keys.data());
    std::fill(scratch.scores.begin(), scratch.scores.begin() + rows * kKeyBlock, 0.0f);
    const auto vector = [&](int64_t d, int64_t v) { return load(keys.start[v] + d * keys.stride); };
    multiply_vectors(rows, s.head_dim, width / kLanes, scratch.q.data(), dim, vector,
                     scratch.scores.data(), kKeyBlock);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t last = item.position + r / group;
      const int64_t low = std::max<int64_t>(0, last + 1 - window - first);
      const int64_t high = std::min(count, last + 1 - first);
      float* scores = scratch.scores.data() + r * kKeyBlock;
      if (low >= high) {
        std::fill(scores, scores + width, 0.0f);
        continue;
      }
      const float factor =
          softmax_row(s, scores, width, low, high, &scratch.max[r], &scratch.sum[r]);
      float* acc = scratch.acc.data() + r * dim;
      if (factor != 1.0f)
        for (int64_t d = 0; d < dim; ++d) acc[d] *= factor;
    }
    add_values(s, item, v_cache, first, count, rows, scratch);
  }
  for (int64_t r = 0; r < rows; ++r) {
    float* row = out + ((item.token + r / group) * s.heads + item.kv_head * group + r % group) *
                           s.head_dim;
    const float inverse = 1.0f / scratch.sum[r];
    for (int64_t d = 0; d < s.head_dim; ++d) row[d] = scratch.acc[r * dim + d] * inverse;
  }
}

inline void paged_attention(const AttentionShape& s, int64_t sequences, const int32_t* query_start,
                            const int32_t* context_lens, const int32_t* block_tables,
                            const float* q, const float* k_cache, const float* v_cache,
                            float* out) {
  const int64_t step = std::max<int64_t>(1, kQueryRows / s.group());
  std::vector<AttentionItem> items;
  for (int64_t i = 0; i < sequences; ++i) {
    const int64_t queries = query_start[i + 1] - query_start[i];
    for (int64_t first = 0; first < queries; first += step)
      for (int64_t head = 0; head < s.kv_heads; ++head)
        items.push_back({head, query_start[i] + first, std::min(step, queries - first),
                         context_lens[i] - queries + first, block_tables + i * s.max_blocks});
  }
  for_each_chunk(items.size(), 1, [&](int64_t i, int64_t) {
    static thread_local AttentionScratch scratch;
    scratch.fit(s);
    attend(s, items[i], q, k_cache, v_cache, out, scratch);
  });
}

// source: (tokens, kv_heads, head_dim)
struct NewRows {
  const float* source;
  int64_t token_stride, head_stride;

  const float* row(int64_t token, int64_t head) const {
    return source + token * token_stride + head * head_stride;
  }
};

// k_cache: (blocks, kv_heads, head_dim, block_size), v_cache: (blocks, kv_heads, block_size, head_dim)
inline void store_kv(int64_t tokens, int64_t kv_heads, int64_t block_size, int64_t head_dim,
                     const NewRows& k, const NewRows& v, const int64_t* slot_mapping, float* k_cache,
                     float* v_cache) {
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t block = slot_mapping[t] / block_size, offset = slot_mapping[t] % block_size;
    for (int64_t h = 0; h < kv_heads; ++h) {
      const int64_t start = (block * kv_heads + h) * block_size * head_dim;
      std::memcpy(v_cache + start + offset * head_dim, v.row(t, h), head_dim * 4);
      const float* key = k.row(t, h);
      for (int64_t d = 0; d < head_dim; ++d) k_cache[start + d * block_size + offset] = key[d];
    }
  }
}

}  // namespace graftwork

// What the ops demand of their tensors. Each raises RuntimeError in Python.
#pragma once

#include <ATen/core/Tensor.h>

#include "paged_attention.h"
#include "panel_linear.h"
#include "runs.h"

namespace graftwork {

using at::Tensor;

inline void check(const Tensor& t, at::ScalarType dtype, int64_t dim, const char* name) {
  TORCH_CHECK(t.device().is_cpu() && t.scalar_type() == dtype && t.dim() == dim, name, " must be a ",
              dim, "-dimensional CPU tensor of ", dtype, ", is ", t.dim(), "-dimensional ",
              t.scalar_type(), " on ", t.device());
}

inline void check_contiguous(const Tensor& t, at::ScalarType dtype, int64_t dim, const char* name) {
  check(t, dtype, dim, name);
  TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
}

inline void check_rows(const Tensor& t, int64_t dim, const char* name) {
  check(t, at::kFloat, dim, name);
  TORCH_CHECK(t.size(-1) <= 1 || t.stride(-1) == 1, name, " must be contiguous in its last dimension");
}

template <class Codes>
PanelWeights check_weights(int64_t in_features, const Tensor& codes, at::ScalarType dtype,
                           const Tensor& scales, const std::optional<Tensor>& bias,
                           int64_t out_features) {
  check_contiguous(codes, dtype, 3, "codes");
  check_contiguous(scales, at::kFloat, 3, "scales");
  const int64_t groups = scales.size(1);
  PanelWeights w{static_cast<const uint8_t*>(codes.const_data_ptr()),
                 scales.const_data_ptr<float>(), nullptr, in_features, out_features,
                 groups > 0 ? in_features / groups : 0};
  TORCH_CHECK(in_features > 0 && out_features > 0 && groups > 0 && in_features % groups == 0,
              "in_features ", in_features, " must be a multiple of the number of groups ", groups);
  TORCH_CHECK(codes.size(0) == w.panels() && codes.size(1) == in_features &&
                  codes.size(2) == Codes::kBytesPerK && scales.size(0) == w.panels() &&
                  scales.size(2) == kPanel,
              "codes ", codes.sizes(), " and scales ", scales.sizes(), " do not fit a weight of (",
              out_features, ", ", in_features, ")");
  if (bias) {
    check_contiguous(*bias, at::kFloat, 1, "bias");
    TORCH_CHECK(bias->size(0) == out_features, "bias must have out_features elements");
    w.bias = bias->const_data_ptr<float>();
  }
  return w;
}

inline const Run* check_runs(const Tensor& runs, const Tensor& slots, int64_t rows) {
  check_contiguous(runs, at::kInt, 2, "runs");
  TORCH_CHECK(runs.size(1) == 3, "runs must be (n, 3): slot, start, stop");
  const Run* first = reinterpret_cast<const Run*>(runs.const_data_ptr<int32_t>());
  for (int64_t i = 0; i < runs.size(0); ++i)
    TORCH_CHECK(first[i].slot >= 0 && first[i].slot < slots.size(0) && first[i].start >= 0 &&
                    first[i].start <= first[i].stop && first[i].stop <= rows,
                "run ", i, " (slot ", first[i].slot, ", rows ", first[i].start, " to ",
                first[i].stop, ") is outside ", slots.size(0), " slots or ", rows, " rows");
  return first;
}

// Rows of a table of slots that hold addresses, as the kernels read them.
template <class Slot>
const Slot* check_slots(const Tensor& slots) {
  check_contiguous(slots, at::kLong, 2, "slots");
  constexpr int64_t columns = sizeof(Slot) / sizeof(int64_t);
  TORCH_CHECK(slots.size(1) == columns, "slots must be (n, ", columns, ")");
  return reinterpret_cast<const Slot*>(slots.const_data_ptr<int64_t>());
}

inline void check_cache(const Tensor& k_cache, const Tensor& v_cache) {
  check_contiguous(k_cache, at::kFloat, 4, "k_cache");
  check_contiguous(v_cache, at::kFloat, 4, "v_cache");
  TORCH_CHECK(k_cache.size(0) == v_cache.size(0) && k_cache.size(1) == v_cache.size(1) &&
                  k_cache.size(2) == v_cache.size(3) && k_cache.size(3) == v_cache.size(2) &&
                  k_cache.numel() > 0,
              "k_cache must be (blocks, kv_heads, head_dim, block_size), v_cache (blocks, kv_heads, "
              "block_size, head_dim), and neither empty");
}

// Of queries that lie without gaps; scale, window and softcap are the caller's to say.
inline AttentionShape attention_shape(int64_t heads, const Tensor& v_cache,
                                      const Tensor& block_tables) {
  AttentionShape s{};
  s.heads = heads;
  s.kv_heads = v_cache.size(1);
  s.head_dim = v_cache.size(3);
  s.block_size = v_cache.size(2);
  s.max_blocks = block_tables.size(-1);
  s.q_stride = heads * s.head_dim;
  s.q_head_stride = s.head_dim;
  return s;
}

inline const int64_t* check_mapping(const Tensor& slot_mapping, int64_t tokens,
                                    const Tensor& v_cache) {
  check_contiguous(slot_mapping, at::kLong, 1, "slot_mapping");
  TORCH_CHECK(slot_mapping.size(0) == tokens, "slot_mapping must have a place for each token");
  const int64_t* mapping = slot_mapping.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < tokens; ++t)
    TORCH_CHECK(mapping[t] >= 0 && mapping[t] < v_cache.size(0) * v_cache.size(2), "slot_mapping[", t,
                "] = ", mapping[t], " is outside the cache");
  return mapping;
}

inline void check_sequences(const Tensor& block_tables, const Tensor& query_start,
                            const Tensor& context_lens, int64_t tokens, int64_t blocks,
                            int64_t block_size) {
  check_contiguous(block_tables, at::kInt, 2, "block_tables");
  check_contiguous(query_start, at::kInt, 1, "query_start");
  check_contiguous(context_lens, at::kInt, 1, "context_lens");
  const int64_t sequences = context_lens.size(0);
  TORCH_CHECK(block_tables.size(0) == sequences && query_start.size(0) == sequences + 1,
              "block_tables, query_start and context_lens must agree on the number of sequences");
  const int32_t* start = query_start.const_data_ptr<int32_t>();
  const int32_t* context = context_lens.const_data_ptr<int32_t>();
  const int32_t* table = block_tables.const_data_ptr<int32_t>();
  TORCH_CHECK(start[0] == 0 && start[sequences] == tokens, "query_start must run from 0 to ", tokens);
  for (int64_t i = 0; i < sequences; ++i) {
    const int64_t used = (context[i] + block_size - 1) / block_size;
    TORCH_CHECK(start[i] <= start[i + 1] && context[i] >= start[i + 1] - start[i] &&
                    used <= block_tables.size(1),
                "sequence ", i, ": context ", context[i], " does not hold its ",
                start[i + 1] - start[i], " queries or exceeds its blocks");
    for (int64_t j = 0; j < used; ++j) {
      const int32_t block = table[i * block_tables.size(1) + j];
      TORCH_CHECK(block >= 0 && block < blocks, "sequence ", i, ": block ", block,
                  " is outside the cache");
    }
  }
}

}  // namespace graftwork

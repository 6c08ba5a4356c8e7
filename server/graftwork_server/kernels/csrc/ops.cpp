// Checks tensors and registers the kernels as torch.ops.graftwork.*. torch releases the GIL around
// them. Shapes and meanings are documented on the Python functions that call them.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include "checks.h"
#include "decoder_op.h"
#include "elementwise.h"
#include "gated_prompts.h"
#include "input_transforms.h"
#include "low_rank.h"
#include "module_edits.h"
#include "output_scale.h"
#include "paged_attention.h"
#include "pair_rotation.h"
#include "panel_linear.h"
#include "rounded_linear.h"
#include "row_reductions.h"
#include "terms.h"

namespace graftwork {
namespace {

Tensor int8_linear_op(const Tensor& x, const Tensor& codes, const Tensor& scales,
                      const std::optional<Tensor>& bias, int64_t out_features) {
  check_contiguous(x, at::kFloat, 2, "x");
  const PanelWeights w =
      check_weights<Int8Codes>(x.size(1), codes, at::kChar, scales, bias, out_features);
  Tensor y = at::empty({x.size(0), out_features}, x.options());
  const RoundedProduct product{w, y.mutable_data_ptr<float>()};
  multiply_int8({&product, 1}, x.size(0), x.const_data_ptr<float>());
  return y;
}

Tensor nf4_linear_op(const Tensor& x, const Tensor& codes, const Tensor& scales,
                     const std::optional<Tensor>& bias, int64_t out_features) {
  check_contiguous(x, at::kFloat, 2, "x");
  const PanelWeights w =
      check_weights<Nf4Codes>(x.size(1), codes, at::kByte, scales, bias, out_features);
  Tensor y = at::empty({x.size(0), out_features}, x.options());
  if (x.size(0) > 0)
    panel_linear<Nf4Codes>(w, x.size(0), x.const_data_ptr<float>(), y.mutable_data_ptr<float>());
  return y;
}

void add_low_rank_op(Tensor& y, const Tensor& x, const Tensor& slots, const Tensor& runs) {
  check_rows(y, 2, "y");
  check_rows(x, 2, "x");
  const LowRankSlot* table = check_slots<LowRankSlot>(slots);
  TORCH_CHECK(x.size(0) == y.size(0), "x and y must have the same rows");
  const LowRankSum sum{table,
                       {x.size(1), y.size(1), x.stride(0), y.stride(0)},
                       y.mutable_data_ptr<float>()};
  const Run* first = check_runs(runs, slots, y.size(0));
  add_low_ranks(sum, first, runs.size(0), x.const_data_ptr<float>());
}

void apply_output_scale_op(Tensor& y, const Tensor& slots, const Tensor& runs) {
  check_rows(y, 2, "y");
  const OutputScaleSlot* table = check_slots<OutputScaleSlot>(slots);
  const Run* first = check_runs(runs, slots, y.size(0));
  apply_output_scale(table, first, runs.size(0), y.size(1), y.stride(0), y.mutable_data_ptr<float>());
}

void add_terms_op(Tensor& y, const Tensor& x, const Tensor& slots, const Tensor& runs) {
  check_rows(y, 2, "y");
  check_rows(x, 2, "x");
  const TermSlot* table = check_slots<TermSlot>(slots);
  TORCH_CHECK(x.size(0) == y.size(0), "x and y must have the same rows");
  const Run* first = check_runs(runs, slots, y.size(0));
  add_terms(table, first, runs.size(0), x.const_data_ptr<float>(), x.stride(0),
            y.mutable_data_ptr<float>(), y.stride(0));
}

Tensor transform_inputs_op(const Tensor& x, const Tensor& slots, const Tensor& runs) {
  check_rows(x, 2, "x");
  const InputSlot* table = check_slots<InputSlot>(slots);
  const Run* first = check_runs(runs, slots, x.size(0));
  Tensor changed = at::empty({x.size(0), x.size(1)}, x.options());
  float* out = changed.mutable_data_ptr<float>();
  for (int64_t row = 0; row < x.size(0); ++row)
    std::copy_n(x.const_data_ptr<float>() + row * x.stride(0), x.size(1), out + row * x.size(1));
  transform_inputs(table, first, runs.size(0), x.size(1), out);
  return changed;
}

void rotate_pairs_op(Tensor& y, const Tensor& slots, const Tensor& runs) {
  check_rows(y, 2, "y");
  const PairRotationSlot* table = check_slots<PairRotationSlot>(slots);
  const Run* first = check_runs(runs, slots, y.size(0));
  rotate_pairs(table, first, runs.size(0), y.size(1), y.stride(0), y.mutable_data_ptr<float>());
}

void replace_rms_norm_op(Tensor& y, const Tensor& x, const Tensor& slots, const Tensor& runs,
                         double offset, double eps) {
  check_contiguous(y, at::kFloat, 2, "y");
  check_contiguous(x, at::kFloat, 2, "x");
  const NormSlot* table = check_slots<NormSlot>(slots);
  TORCH_CHECK(x.sizes() == y.sizes(), "x ", x.sizes(), " and y ", y.sizes(), " differ");
  const Run* first = check_runs(runs, slots, y.size(0));
  replace_rms_norm(table, first, runs.size(0), static_cast<float>(offset), static_cast<float>(eps),
                   y.size(1), x.const_data_ptr<float>(), y.mutable_data_ptr<float>());
}

void add_bottlenecks_op(Tensor& y, const Tensor& slots, const Tensor& runs) {
  check_rows(y, 2, "y");
  const BottleneckSlot* table = check_slots<BottleneckSlot>(slots);
  const Run* first = check_runs(runs, slots, y.size(0));
  add_bottlenecks(table, first, runs.size(0), y.size(1), y.stride(0),
                  y.mutable_data_ptr<float>());
}

void add_gated_prompts_op(Tensor& output, const Tensor& q, const Tensor& slots, const Tensor& runs,
                          int64_t kv_heads, double scale) {
  check_contiguous(output, at::kFloat, 3, "output");
  check_rows(q, 3, "q");
  const GatedPromptSlot* table = check_slots<GatedPromptSlot>(slots);
  TORCH_CHECK(q.sizes() == output.sizes() && kv_heads > 0 && q.size(1) % kv_heads == 0,
              "q ", q.sizes(), " does not fit output ", output.sizes(), " or ", kv_heads, " heads");
  const Run* first = check_runs(runs, slots, q.size(0));
  const GatedPromptShape shape{q.size(1), kv_heads,    q.size(2),
                               q.stride(0), q.stride(1), static_cast<float>(scale)};
  add_gated_prompts(table, first, runs.size(0), shape, q.const_data_ptr<float>(),
                    output.mutable_data_ptr<float>());
}

void store_kv_op(const Tensor& k, const Tensor& v, Tensor& k_cache, Tensor& v_cache,
                 const Tensor& slot_mapping) {
  check_rows(k, 3, "k");
  check_rows(v, 3, "v");
  check_cache(k_cache, v_cache);
  const int64_t heads = v_cache.size(1), block_size = v_cache.size(2), dim = v_cache.size(3);
  TORCH_CHECK(k.sizes() == v.sizes() && k.size(1) == heads && k.size(2) == dim,
              "k and v must be (tokens, kv_heads, head_dim) and fit the cache");
  const int64_t* mapping = check_mapping(slot_mapping, k.size(0), v_cache);
  store_kv(k.size(0), heads, block_size, dim,
           {k.const_data_ptr<float>(), k.stride(0), k.stride(1)},
           {v.const_data_ptr<float>(), v.stride(0), v.stride(1)}, mapping,
           k_cache.mutable_data_ptr<float>(), v_cache.mutable_data_ptr<float>());
}

Tensor paged_attention_op(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                          const Tensor& block_tables, const Tensor& query_start,
                          const Tensor& context_lens, double scale,
                          std::optional<int64_t> sliding_window, std::optional<double> softcap) {
  check_rows(q, 3, "q");
  check_cache(k_cache, v_cache);
  AttentionShape s = attention_shape(q.size(1), v_cache, block_tables);
  s.q_stride = q.stride(0);
  s.q_head_stride = q.stride(1);
  s.scale = static_cast<float>(scale);
  s.sliding_window = sliding_window.value_or(0);
  s.softcap = static_cast<float>(softcap.value_or(0.0));
  TORCH_CHECK(s.head_dim == q.size(2) && s.heads % s.kv_heads == 0, "q ", q.sizes(),
              " does not fit the cache ", v_cache.sizes());
  TORCH_CHECK(!sliding_window || *sliding_window > 0, "sliding_window must be positive");
  TORCH_CHECK(!softcap || *softcap > 0, "softcap must be positive");
  check_sequences(block_tables, query_start, context_lens, q.size(0), k_cache.size(0),
                  s.block_size);
  Tensor out = at::empty({q.size(0), s.heads, s.head_dim}, q.options());
  if (q.size(0) > 0)
    paged_attention(s, context_lens.size(0), query_start.const_data_ptr<int32_t>(),
                    context_lens.const_data_ptr<int32_t>(), block_tables.const_data_ptr<int32_t>(),
                    q.const_data_ptr<float>(), k_cache.const_data_ptr<float>(),
                    v_cache.const_data_ptr<float>(), out.mutable_data_ptr<float>());
  return out;
}

Tensor rms_norm_op(const Tensor& x, const Tensor& weight, double offset, double eps) {
  check_contiguous(x, at::kFloat, 2, "x");
  check_contiguous(weight, at::kFloat, 1, "weight");
  TORCH_CHECK(weight.size(0) == x.size(1), "weight ", weight.sizes(), " does not fit x ", x.sizes());
  Tensor y = at::empty(x.sizes(), x.options());
  rms_norm(x.const_data_ptr<float>(), weight.const_data_ptr<float>(), static_cast<float>(offset),
           static_cast<float>(eps), x.size(0), x.size(1), y.mutable_data_ptr<float>());
  return y;
}

void silu_multiply_op(const Tensor& gate, const Tensor& up) {
  check_contiguous(gate, at::kFloat, 2, "gate");
  check_contiguous(up, at::kFloat, 2, "up");
  TORCH_CHECK(gate.sizes() == up.sizes(), "gate ", gate.sizes(), " and up ", up.sizes(), " differ");
  silu_multiply(gate.mutable_data_ptr<float>(), up.const_data_ptr<float>(), gate.size(0),
                gate.size(1));
}

void rotate_heads_op(const Tensor& x, const Tensor& cosine, const Tensor& sine) {
  check_contiguous(x, at::kFloat, 3, "x");
  check_contiguous(cosine, at::kFloat, 2, "cosine");
  check_contiguous(sine, at::kFloat, 2, "sine");
  TORCH_CHECK(x.size(2) % 2 == 0 && cosine.size(0) == x.size(0) && cosine.size(1) == x.size(2) &&
                  sine.sizes() == cosine.sizes(),
              "cosine ", cosine.sizes(), " and sine ", sine.sizes(), " do not fit x ", x.sizes());
  rotate_heads(x.mutable_data_ptr<float>(), cosine.const_data_ptr<float>(),
               sine.const_data_ptr<float>(), x.size(0), x.size(1), x.size(2));
}

void check_columns(const Tensor& x) {
  check_contiguous(x, at::kFloat, 2, "x");
  TORCH_CHECK(x.size(1) > 0 && x.size(1) <= std::numeric_limits<int32_t>::max(),
              "x must have at least one column and at most 2^31 - 1, has ", x.size(1));
}

std::tuple<Tensor, Tensor> row_peaks_op(const Tensor& x) {
  check_columns(x);
  Tensor values = at::empty({x.size(0)}, x.options());
  Tensor places = at::empty({x.size(0)}, x.options().dtype(at::kLong));
  row_peaks(x.const_data_ptr<float>(), x.size(0), x.size(1), values.mutable_data_ptr<float>(),
            places.mutable_data_ptr<int64_t>());
  return {values, places};
}

Tensor row_logsumexp_op(const Tensor& x) {
  check_columns(x);
  Tensor y = at::empty({x.size(0)}, x.options());
  row_logsumexp(x.const_data_ptr<float>(), x.size(0), x.size(1), y.mutable_data_ptr<float>());
  return y;
}

}  // namespace

TORCH_LIBRARY(graftwork, m) {
  m.class_<DecoderLayers>("DecoderLayers").def(torch::init<>()).def("add", &DecoderLayers::add);
  m.def("run_decoder_layers(__torch__.torch.classes.graftwork.DecoderLayers layers, Tensor x,"
        " Tensor cosine, Tensor sine, Tensor[] k_caches, Tensor[] v_caches, Tensor slot_mapping,"
        " Tensor block_tables, Tensor query_start, Tensor context_lens, Tensor runs) -> Tensor");
  m.def("int8_linear(Tensor x, Tensor codes, Tensor scales, Tensor? bias, int out_features)"
        " -> Tensor");
  m.def("nf4_linear(Tensor x, Tensor codes, Tensor scales, Tensor? bias, int out_features)"
        " -> Tensor");
  m.def("add_low_rank(Tensor(a!) y, Tensor x, Tensor slots, Tensor runs) -> ()");
  m.def("apply_output_scale(Tensor(a!) y, Tensor slots, Tensor runs) -> ()");
  m.def("add_terms(Tensor(a!) y, Tensor x, Tensor slots, Tensor runs) -> ()");
  m.def("transform_inputs(Tensor x, Tensor slots, Tensor runs) -> Tensor");
  m.def("rotate_pairs(Tensor(a!) y, Tensor slots, Tensor runs) -> ()");
  m.def("replace_rms_norm(Tensor(a!) y, Tensor x, Tensor slots, Tensor runs, float offset,"
        " float eps) -> ()");
  m.def("add_bottlenecks(Tensor(a!) y, Tensor slots, Tensor runs) -> ()");
  m.def("add_gated_prompts(Tensor(a!) output, Tensor q, Tensor slots, Tensor runs, int kv_heads,"
        " float scale) -> ()");
  m.def("rms_norm(Tensor x, Tensor weight, float offset, float eps) -> Tensor");
  m.def("silu_multiply(Tensor(a!) gate, Tensor up) -> ()");
  m.def("rotate_heads(Tensor(a!) x, Tensor cosine, Tensor sine) -> ()");
  m.def("row_peaks(Tensor x) -> (Tensor, Tensor)");
  m.def("row_logsumexp(Tensor x) -> Tensor");
  m.def("store_kv(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slot_mapping)"
        " -> ()");
  m.def("paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_tables,"
        " Tensor query_start, Tensor context_lens, float scale, int? sliding_window,"
        " float? softcap) -> Tensor");
}

TORCH_LIBRARY_IMPL(graftwork, CPU, m) {
  m.impl("run_decoder_layers", &run_decoder_layers_op);
  m.impl("int8_linear", &int8_linear_op);
  m.impl("nf4_linear", &nf4_linear_op);
  m.impl("add_low_rank", &add_low_rank_op);
  m.impl("apply_output_scale", &apply_output_scale_op);
  m.impl("add_terms", &add_terms_op);
  m.impl("transform_inputs", &transform_inputs_op);
  m.impl("rotate_pairs", &rotate_pairs_op);
  m.impl("replace_rms_norm", &replace_rms_norm_op);
  m.impl("add_bottlenecks", &add_bottlenecks_op);
  m.impl("add_gated_prompts", &add_gated_prompts_op);
  m.impl("rms_norm", &rms_norm_op);
  m.impl("silu_multiply", &silu_multiply_op);
  m.impl("rotate_heads", &rotate_heads_op);
  m.impl("row_peaks", &row_peaks_op);
  m.impl("row_logsumexp", &row_logsumexp_op);
  m.impl("store_kv", &store_kv_op);
  m.impl("paged_attention", &paged_attention_op);
}

}  // namespace graftwork

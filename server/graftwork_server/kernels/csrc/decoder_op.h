// The decoder layers of a base as torch sees them: a class that holds their tensors, and the op that
// runs them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/clone.h>
#include <torch/custom_class.h>

#include "checks.h"
#include "decoder_layers.h"

namespace graftwork {

// Tensors are asked for their memory at each step: a base may move to other memory once it is loaded.
class DecoderLayers : public torch::CustomClassHolder {
 public:
  static constexpr size_t kLinears = 7;  // q, k, v, o, gate, up, down
  static constexpr size_t kTables = 5;   // of a linear: see GraftedWeights

  struct Layer {
    std::vector<Tensor> norms;      // weights of the attention's and of the MLP's
    std::vector<double> constants;  // offset and eps of each norm, then the scale of scores
    int64_t sliding_window;         // 0: none
    std::vector<Tensor> codes, scales;
    std::vector<std::optional<Tensor>> biases;
    std::vector<int64_t> out_features;
    std::vector<Tensor> linear_tables;  // kTables of each linear
    // Of each norm, of the bottlenecks behind attention, MLP and the whole, of the gated prompts.
    std::vector<Tensor> other_tables;
  };

  void add(std::vector<Tensor> norms, std::vector<double> constants, int64_t sliding_window,
           std::vector<Tensor> codes, std::vector<Tensor> scales,
           c10::List<std::optional<Tensor>> biases, std::vector<int64_t> out_features,
           std::vector<Tensor> linear_tables, std::vector<Tensor> other_tables) {
    TORCH_CHECK(norms.size() == 2 && constants.size() == 5 && codes.size() == kLinears &&
                    scales.size() == kLinears && biases.size() == kLinears &&
                    out_features.size() == kLinears &&
                    linear_tables.size() == kLinears * kTables && other_tables.size() == 6,
                "a decoder layer has 2 norms, 5 constants, 7 linears of 5 tables, 6 other tables");
    Layer layer{std::move(norms),        std::move(constants),     sliding_window,
                std::move(codes),        std::move(scales),        biases.vec(),
                std::move(out_features), std::move(linear_tables), std::move(other_tables)};
    check_layer(layer);
    layers_.push_back(std::move(layer));
  }

  int64_t count() const { return layers_.size(); }

  int64_t hidden_size() const { return layers_[0].norms[0].size(0); }

  int64_t intermediate_size() const { return layers_[0].out_features[4]; }

  const Tensor& any_table() const { return layers_[0].other_tables[0]; }

  DecoderLayer view(int64_t index, float* k_cache, float* v_cache) const {
    return view_of(layers_[index], k_cache, v_cache);
  }

 private:
  static DecoderLayer view_of(const Layer& layer, float* k_cache, float* v_cache) {
    DecoderLayer view{};
    view.attention_norm = norm_of(layer, 0);
    view.mlp_norm = norm_of(layer, 1);
    GraftedWeights* linears[kLinears] = {&view.q,    &view.k,  &view.v,   &view.o,
                                         &view.gate, &view.up, &view.down};
    for (size_t i = 0; i < kLinears; ++i) *linears[i] = linear_of(layer, i);
    view.attention_bottlenecks = check_slots<BottleneckSlot>(layer.other_tables[2]);
    view.mlp_bottlenecks = check_slots<BottleneckSlot>(layer.other_tables[3]);
    view.layer_bottlenecks = check_slots<BottleneckSlot>(layer.other_tables[4]);
    view.gated_prompts = check_slots<GatedPromptSlot>(layer.other_tables[5]);
    view.scale = static_cast<float>(layer.constants[4]);
    view.sliding_window = layer.sliding_window;
    view.k_cache = k_cache;
    view.v_cache = v_cache;
    return view;
  }

  static GraftedNorm norm_of(const Layer& layer, size_t i) {
    return {layer.norms[i].const_data_ptr<float>(), check_slots<NormSlot>(layer.other_tables[i]),
            static_cast<float>(layer.constants[2 * i]),
            static_cast<float>(layer.constants[2 * i + 1])};
  }

  static GraftedWeights linear_of(const Layer& layer, size_t i) {
    const Tensor* tables = layer.linear_tables.data() + i * kTables;
    return {check_weights<Int8Codes>(layer.codes[i].size(1), layer.codes[i], at::kChar,
                                     layer.scales[i], layer.biases[i], layer.out_features[i]),
            check_slots<InputSlot>(tables[0]),
            check_slots<LowRankSlot>(tables[1]),
            check_slots<TermSlot>(tables[2]),
            check_slots<OutputScaleSlot>(tables[3]),
            check_slots<PairRotationSlot>(tables[4])};
  }

  void check_layer(const Layer& layer) const {
    for (const Tensor& codes : layer.codes) check_contiguous(codes, at::kChar, 3, "codes");
    for (const Tensor& norm : layer.norms) check_contiguous(norm, at::kFloat, 1, "norm");
    const DecoderLayer found = view_of(layer, nullptr, nullptr);
    const int64_t hidden = layer.norms[0].size(0), inner = found.gate.w.out_features;
    const auto fits = [](const GraftedWeights& linear, int64_t in_features) {
      return linear.w.in_features == in_features;
    };
    TORCH_CHECK(layer.norms[1].size(0) == hidden && fits(found.q, hidden) && fits(found.k, hidden) &&
                    fits(found.v, hidden) && fits(found.o, found.q.w.out_features) &&
                    fits(found.gate, hidden) && fits(found.up, hidden) && fits(found.down, inner) &&
                    found.o.w.out_features == hidden && found.down.w.out_features == hidden &&
                    found.k.w.out_features == found.v.w.out_features &&
                    found.up.w.out_features == inner,
                "the sizes of a decoder layer do not fit each other");
    const auto same_group = [](const GraftedWeights& a, const GraftedWeights& b) {
      return a.w.group == b.w.group;
    };
    TORCH_CHECK(same_group(found.q, found.k) && same_group(found.q, found.v) &&
                    same_group(found.gate, found.up),
                "linears with one input must have groups of one size");
    TORCH_CHECK(layers_.empty() || (hidden == hidden_size() &&
                                    layer.out_features == layers_[0].out_features),
                "the sizes of two decoder layers differ");
    const int64_t slots = (layers_.empty() ? layer : layers_[0]).other_tables[0].size(0);
    for (const std::vector<Tensor>* tables : {&layer.linear_tables, &layer.other_tables})
      for (const Tensor& table : *tables)
        TORCH_CHECK(table.size(0) == slots, "tables must have as many slots");
  }

  std::vector<Layer> layers_;
};

inline Tensor run_decoder_layers_op(const c10::intrusive_ptr<DecoderLayers>& layers,
                                    const Tensor& x, const Tensor& cosine, const Tensor& sine,
                                    at::TensorList k_caches, at::TensorList v_caches,
                                    const Tensor& slot_mapping, const Tensor& block_tables,
                                    const Tensor& query_start, const Tensor& context_lens,
                                    const Tensor& runs) {
  const int64_t count = layers->count();
  TORCH_CHECK(count > 0 && static_cast<int64_t>(k_caches.size()) == count &&
                  static_cast<int64_t>(v_caches.size()) == count,
              "there are ", count, " layers, ", k_caches.size(), " caches of keys and ",
              v_caches.size(), " of values");
  for (int64_t i = 0; i < count; ++i) {
    check_cache(k_caches[i], v_caches[i]);
    TORCH_CHECK(k_caches[i].sizes() == k_caches[0].sizes(), "the caches of two layers differ");
  }
  check_contiguous(x, at::kFloat, 2, "x");
  check_contiguous(cosine, at::kFloat, 2, "cosine");
  check_contiguous(sine, at::kFloat, 2, "sine");
  const int64_t tokens = x.size(0);
  DecoderStep step{};
  step.tokens = tokens;
  step.hidden_size = layers->hidden_size();
  step.runs = check_runs(runs, layers->any_table(), tokens);
  step.num_runs = runs.size(0);
  step.cosine = cosine.const_data_ptr<float>();
  step.sine = sine.const_data_ptr<float>();
  step.slot_mapping = check_mapping(slot_mapping, tokens, v_caches[0]);
  step.sequences = context_lens.size(0);
  const DecoderLayer any = layers->view(0, nullptr, nullptr);
  step.attention = attention_shape(any.q.w.out_features / v_caches[0].size(3), v_caches[0],
                                   block_tables);
  const AttentionShape& s = step.attention;
  TORCH_CHECK(x.size(1) == step.hidden_size && s.head_dim % 2 == 0 &&
                  any.q.w.out_features % s.head_dim == 0 && s.heads % s.kv_heads == 0 &&
                  any.k.w.out_features == s.kv_heads * s.head_dim && cosine.size(0) == tokens &&
                  cosine.size(1) == s.head_dim && sine.sizes() == cosine.sizes(),
              "x ", x.sizes(), ", cosine ", cosine.sizes(), " and sine ", sine.sizes(),
              " do not fit the layers or the cache ", v_caches[0].sizes());
  check_sequences(block_tables, query_start, context_lens, tokens, k_caches[0].size(0),
                  s.block_size);
  step.query_start = query_start.const_data_ptr<int32_t>();
  step.context_lens = context_lens.const_data_ptr<int32_t>();
  step.block_tables = block_tables.const_data_ptr<int32_t>();
  Tensor y = x.clone();
  if (tokens == 0) return y;
  LayerRunner runner(step, layers->intermediate_size());
  for (int64_t i = 0; i < count; ++i)
    runner.run(layers->view(i, k_caches[i].mutable_data_ptr<float>(),
                            v_caches[i].mutable_data_ptr<float>()),
               y.mutable_data_ptr<float>());
  return y;
}

}  // namespace graftwork

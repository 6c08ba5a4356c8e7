// The layers of a decoder in one call: norm, attention, norm, gated MLP, as Llama has them
// (arXiv:2302.13971), with all that the adapters of a step's rows do to them. Every piece is the
// kernel that serves it alone, so that a row's bits are the same as when modules are called one by one.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "elementwise.h"
#include "gated_prompts.h"
#include "input_transforms.h"
#include "module_edits.h"
#include "output_scale.h"
#include "paged_attention.h"
#include "pair_rotation.h"
#include "rounded_linear.h"
#include "terms.h"

namespace graftwork {

// A linear module with the tables of what adapters do to it.
struct GraftedWeights {
  PanelWeights w;
  const InputSlot* inputs;
  const LowRankSlot* low_ranks;
  const TermSlot* terms;
  const OutputScaleSlot* output_scales;
  const PairRotationSlot* rotations;
};

struct GraftedNorm {
  const float* weight;  // (hidden_size,)
  const NormSlot* slots;
  float offset, eps;
};

struct DecoderLayer {
  GraftedNorm attention_norm, mlp_norm;
  GraftedWeights q, k, v, o, gate, up, down;
  const BottleneckSlot* attention_bottlenecks;
  const BottleneckSlot* mlp_bottlenecks;
  const BottleneckSlot* layer_bottlenecks;
  const GatedPromptSlot* gated_prompts;
  float scale;             // of the attention's scores
  int64_t sliding_window;  // 0: none
  float* k_cache;
  float* v_cache;
};

struct DecoderStep {
  int64_t tokens, hidden_size;
  const Run* runs;
  int64_t num_runs;
  const float *cosine, *sine;  // (tokens, head_dim)
  AttentionShape attention;    // but for each layer's scale and window
  int64_t sequences;
  const int32_t *query_start, *context_lens, *block_tables;
  const int64_t* slot_mapping;
};

// Memory of undefined contents.
inline std::unique_ptr<float[]> floats(int64_t count) {
  return std::unique_ptr<float[]>(new float[count]);
}

class LayerRunner {
 public:
  LayerRunner(const DecoderStep& step, int64_t intermediate_size)
      : step_(step),
        q_(floats(step.tokens * step.attention.heads * step.attention.head_dim)),
        k_(floats(step.tokens * step.attention.kv_heads * step.attention.head_dim)),
        v_(floats(step.tokens * step.attention.kv_heads * step.attention.head_dim)),
        attended_(floats(step.tokens * step.attention.heads * step.attention.head_dim)),
        hidden_(floats(step.tokens * step.hidden_size)),
        gate_(floats(step.tokens * intermediate_size)),
        up_(floats(step.tokens * intermediate_size)) {}

  // x: (tokens, hidden_size), from a layer's input to its output.
  void run(const DecoderLayer& layer, float* x) {
    normalize(layer.attention_norm, x);
    multiply({{&layer.q, q_.get()}, {&layer.k, k_.get()}, {&layer.v, v_.get()}}, hidden_.get());
    attend(layer);
    multiply({{&layer.o, hidden_.get()}}, attended_.get());
    edit(layer.attention_bottlenecks, hidden_.get());
    add_hidden(x);
    normalize(layer.mlp_norm, x);
    multiply({{&layer.gate, gate_.get()}, {&layer.up, up_.get()}}, hidden_.get());
    silu_multiply(gate_.get(), up_.get(), step_.tokens, layer.gate.w.out_features);
    multiply({{&layer.down, hidden_.get()}}, gate_.get());
    edit(layer.mlp_bottlenecks, hidden_.get());
    add_hidden(x);
    edit(layer.layer_bottlenecks, x);
  }

 private:
  struct Product {
    const GraftedWeights* weights;
    float* y;
  };

  void normalize(const GraftedNorm& norm, const float* x) {
    rms_norm(x, norm.weight, norm.offset, norm.eps, step_.tokens, step_.hidden_size, hidden_.get());
    replace_rms_norm(norm.slots, step_.runs, step_.num_runs, norm.offset, norm.eps,
                     step_.hidden_size, x, hidden_.get());
  }

  void edit(const BottleneckSlot* slots, float* y) const {
    add_bottlenecks(slots, step_.runs, step_.num_runs, step_.hidden_size, step_.hidden_size, y);
  }

  // Products of one input; those whose input some row changes are computed by themselves.
  void multiply(std::initializer_list<Product> products, const float* x) {
    std::vector<Product> together;
    for (const Product& product : products) {
      const GraftedWeights& weights = *product.weights;
      if (!is_any([&](int32_t slot) { return weights.inputs[slot].changes(); })) {
        together.push_back(product);
        continue;
      }
      const int64_t features = weights.w.in_features;
      changed_.assign(x, x + step_.tokens * features);
      transform_inputs(weights.inputs, step_.runs, step_.num_runs, features, changed_.data());
      multiply_unchanged({product}, changed_.data());
    }
    if (!together.empty()) multiply_unchanged(together, x);
  }

  void multiply_unchanged(const std::vector<Product>& products, const float* x) {
    std::vector<RoundedProduct> rounded;
    for (const auto& [weights, y] : products)
      rounded.push_back({weights->w, y, weights->low_ranks,
                         adds_terms(*weights) ? nullptr : weights->output_scales});
    multiply_int8({rounded.data(), static_cast<int64_t>(rounded.size())}, step_.tokens, x,
                  step_.runs, step_.num_runs);
    for (const Product& product : products) finish(product, x);
  }

  // Whether a slot of the step's rows is one of those.
  template <class Predicate>
  bool is_any(const Predicate& predicate) const {
    return std::any_of(step_.runs, step_.runs + step_.num_runs,
                       [&](const Run& run) { return predicate(run.slot); });
  }

  bool adds_terms(const GraftedWeights& weights) const {
    return is_any([&](int32_t slot) { return weights.terms[slot].kind != kNoTerm; });
  }

  void finish(const Product& product, const float* x) {
    const GraftedWeights& weights = *product.weights;
    const int64_t in = weights.w.in_features, out = weights.w.out_features;
    if (adds_terms(weights)) {
      add_terms(weights.terms, step_.runs, step_.num_runs, x, in, product.y, out);
      apply_output_scale(weights.output_scales, step_.runs, step_.num_runs, out, out, product.y);
    }
    rotate_pairs(weights.rotations, step_.runs, step_.num_runs, out, out, product.y);
  }

  void attend(const DecoderLayer& layer) {
    AttentionShape s = step_.attention;
    s.scale = layer.scale;
    s.sliding_window = layer.sliding_window;
    rotate_heads(q_.get(), step_.cosine, step_.sine, step_.tokens, s.heads, s.head_dim);
    rotate_heads(k_.get(), step_.cosine, step_.sine, step_.tokens, s.kv_heads, s.head_dim);
    const int64_t stride = s.kv_heads * s.head_dim;
    store_kv(step_.tokens, s.kv_heads, s.block_size, s.head_dim, {k_.get(), stride, s.head_dim},
             {v_.get(), stride, s.head_dim}, step_.slot_mapping, layer.k_cache, layer.v_cache);
    paged_attention(s, step_.sequences, step_.query_start, step_.context_lens, step_.block_tables,
                    q_.get(), layer.k_cache, layer.v_cache, attended_.get());
    const double gated_scale = 1.0 / std::sqrt(static_cast<double>(s.head_dim));
    const GatedPromptShape gated{s.heads,    s.kv_heads, s.head_dim, s.heads * s.head_dim,
                                 s.head_dim, static_cast<float>(gated_scale)};
    add_gated_prompts(layer.gated_prompts, step_.runs, step_.num_runs, gated, q_.get(),
                      attended_.get());
  }

  void add_hidden(float* x) const { add_to(x, hidden_.get(), step_.tokens * step_.hidden_size); }

  const DecoderStep step_;
  const std::unique_ptr<float[]> q_, k_, v_, attended_, hidden_, gate_, up_;
  std::vector<float> changed_;
};

}  // namespace graftwork

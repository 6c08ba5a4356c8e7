// y = x W^T + bias for weights quantized by groups along in_features, activations in float32.
//
// Weights stand in panels of 32 outputs, k-major inside a panel: the kernel reads them once, front
// to back. W[n][k] = code(n, k) * scale(n, k / group), rounded to float32; then every output is one
// chain of fused multiply-adds over k ascending. A row's bits depend on nothing else.
#pragma once

#include "parallel.h"
#include "tile.h"

namespace graftwork {

constexpr int kPanel = 32;
constexpr int kPanelVecs = kPanel / kLanes;
// Panels are too short for the hardware to foresee them: asking this many bytes ahead halves the
// time of one row. A prefetch past the end of the weights is harmless.
constexpr int64_t kAhead = 2048;

// One byte per weight: (panels, in_features, 32) int8.
struct Int8Codes {
  static constexpr int64_t kBytesPerK = kPanel;
  static inline void widen(const uint8_t* p, Vec out[kPanelVecs]) {
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVecs; ++v)
      out[v] = load(reinterpret_cast<const int8_t*>(p) + v * kLanes);
  }
};

// Half a byte per weight: (panels, in_features, 16) uint8; byte i holds the code of output i in its
// low half and of output i + 16 in its high half. Codes index the table of NF4 (QLoRA, appendix E).
struct Nf4Codes {
  static constexpr int64_t kBytesPerK = kPanel / 2;
  alignas(64) static constexpr float kTable[16] = {
      -1.0f,
      -0.6961928009986877f,
      -0.5250730514526367f,
      -0.39491748809814453f,
      -0.28444138169288635f,
      -0.18477343022823334f,
      -0.09105003625154495f,
      0.0f,
      0.07958029955625534f,
      0.16093020141124725f,
      0.24611230194568634f,
      0.33791524171829224f,
      0.44070982933044434f,
      0.5626170039176941f,
      0.7229568362236023f,
      1.0f,
  };
  static inline void widen(const uint8_t* p, Vec out[kPanelVecs]) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    const __m512 table = _mm512_load_ps(kTable);
    const __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
    out[0] = (Vec)_mm512_permutexvar_ps(pairs, table);  // takes the low four bits
    out[1] = (Vec)_mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), table);
#elif defined(__AVX2__)
    const __m256 negative = _mm256_load_ps(kTable), positive = _mm256_load_ps(kTable + 8);
    for (int v = 0; v < 4; ++v) {
      __m256i codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + v % 2 * 8)));
      if (v >= 2) codes = _mm256_srli_epi32(codes, 4);
      // The shuffle takes three bits of a code; the fourth chooses between the halves.
      const __m256 upper = (__m256)_mm256_slli_epi32(codes, 28);
      out[v] = (Vec)_mm256_blendv_ps(_mm256_permutevar8x32_ps(negative, codes),
                                     _mm256_permutevar8x32_ps(positive, codes), upper);
    }
#else
    for (int n = 0; n < kPanel; ++n)
      out[n / kLanes][n % kLanes] = kTable[n < 16 ? p[n] & 15 : p[n - 16] >> 4];
#endif
  }
};

struct PanelWeights {
  const uint8_t* codes;  // (panels, in_features, Codes::kBytesPerK)
  const float* scales;   // (panels, in_features / group, 32)
  const float* bias;     // (out_features,) or null
  int64_t in_features;
  int64_t out_features;
  int64_t group;

  int64_t panels() const { return divide_up(out_features, kPanel); }
  int64_t groups() const { return in_features / group; }
};

// Writes one row of a panel's results, adding the bias.
inline void store_panel(const PanelWeights& w, int64_t panel, const float* values, float* y) {
  const int64_t first = panel * kPanel;
  const int64_t count = std::min<int64_t>(kPanel, w.out_features - first);
  if (w.bias != nullptr)
    for (int64_t n = 0; n < count; ++n) y[first + n] = values[n] + w.bias[first + n];
  else
    for (int64_t n = 0; n < count; ++n) y[first + n] = values[n];
}

// Few rows: weights go from memory through registers, several panels at a time, because one
// panel's chains alone would wait for the latency of the multiply-add.
template <class Codes, int kRows, int kPanels>
inline void few_rows(const PanelWeights& w, int64_t panel, const float* x, float* y) {
  Vec acc[kRows][kPanels][kPanelVecs] = {};
  const int64_t panel_bytes = w.in_features * Codes::kBytesPerK;
  const int64_t panel_scales = w.groups() * kPanel;
  const uint8_t* codes = w.codes + panel * panel_bytes;
  const float* scales = w.scales + panel * panel_scales;
  for (int64_t g = 0; g < w.groups(); ++g) {
    for (int64_t k = g * w.group; k < (g + 1) * w.group; ++k) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        const uint8_t* code = codes + p * panel_bytes + k * Codes::kBytesPerK;
        __builtin_prefetch(code + kAhead);
        Vec weight[kPanelVecs];
        Codes::widen(code, weight);
#pragma GCC unroll 8
        for (int v = 0; v < kPanelVecs; ++v) {
          weight[v] *= load(scales + p * panel_scales + g * kPanel + v * kLanes);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r)
            acc[r][p][v] = fma(weight[v], x[r * w.in_features + k], acc[r][p][v]);
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) {
      float values[kPanel];
      for (int v = 0; v < kPanelVecs; ++v) store(values + v * kLanes, acc[r][p][v]);
      store_panel(w, panel + p, values, y + r * w.out_features);
    }
}

// Panels that few_rows takes at once, so that their accumulators fit the registers.
template <int kRows>
constexpr int kMostPanels = std::clamp(2 * kTileRows / (kRows * kPanelVecs), 1, 4);

template <class Codes, int kRows, int kPanels = kMostPanels<kRows>>
void few_rows_chunk(const PanelWeights& w, int64_t panel, int64_t count, const float* x, float* y) {
  if (count == kPanels)
    few_rows<Codes, kRows, kPanels>(w, panel, x, y);
  else if constexpr (kPanels > 1)
    few_rows_chunk<Codes, kRows, kPanels - 1>(w, panel, count, x, y);
}

template <class Codes, int kRows>
void few_rows_linear(const PanelWeights& w, const float* x, float* y) {
  // Equal chunks, as few as fit and the same number for each thread.
  const int64_t panels = w.panels(), threads = at::get_num_threads();
  const int64_t rounds = divide_up(panels, threads * kMostPanels<kRows>);
  for_each_chunk(panels, divide_up(panels, threads * rounds), [&](int64_t begin, int64_t end) {
    few_rows_chunk<Codes, kRows>(w, begin, end - begin, x, y);
  });
}

// Many rows: a block of a panel is widened once into the first-level cache and used by all rows.
template <class Codes>
void many_rows(const PanelWeights& w, int64_t panel, int64_t rows, const float* x, float* y,
               float* accumulators) {
  constexpr int64_t kDepth = 128;
  alignas(64) float block[kDepth * kPanel];
  std::fill(accumulators, accumulators + rows * kPanel, 0.0f);
  const uint8_t* codes = w.codes + panel * w.in_features * Codes::kBytesPerK;
  const float* scales = w.scales + panel * w.groups() * kPanel;
  for (int64_t first = 0; first < w.in_features; first += kDepth) {
    const int64_t depth = std::min(kDepth, w.in_features - first);
    for (int64_t k = 0; k < depth;) {
      const int64_t g = (first + k) / w.group;
      const int64_t stop = std::min(depth, (g + 1) * w.group - first);
      Vec scale[kPanelVecs];
      for (int v = 0; v < kPanelVecs; ++v) scale[v] = load(scales + g * kPanel + v * kLanes);
      for (; k < stop; ++k) {
        const uint8_t* code = codes + (first + k) * Codes::kBytesPerK;
        __builtin_prefetch(code + kDepth * Codes::kBytesPerK);  // the next block
        Vec weight[kPanelVecs];
        Codes::widen(code, weight);
#pragma GCC unroll 8
        for (int v = 0; v < kPanelVecs; ++v)
          store(block + k * kPanel + v * kLanes, weight[v] * scale[v]);
      }
    }
    multiply(rows, depth, kPanel, x + first, w.in_features, block, kPanel, accumulators, kPanel);
  }
  for (int64_t r = 0; r < rows; ++r)
    store_panel(w, panel, accumulators + r * kPanel, y + r * w.out_features);
}

template <class Codes>
void panel_linear(const PanelWeights& w, int64_t rows, const float* x, float* y) {
  constexpr int64_t kRowBlock = 128;  // its accumulators and its slice of x stay in the caches
  if (rows == 1) return few_rows_linear<Codes, 1>(w, x, y);
  if (rows == 2) return few_rows_linear<Codes, 2>(w, x, y);
  if (rows == 3) return few_rows_linear<Codes, 3>(w, x, y);
  if (rows == 4) return few_rows_linear<Codes, 4>(w, x, y);
  const int64_t panels = w.panels();
  for_each_chunk(panels * divide_up(rows, kRowBlock), 1, [&](int64_t item, int64_t) {
    alignas(64) float accumulators[kRowBlock * kPanel];
    const int64_t first = item / panels * kRowBlock;
    many_rows<Codes>(w, item % panels, std::min(kRowBlock, rows - first),
                     x + first * w.in_features, y + first * w.out_features, accumulators);
  });
}

}  // namespace graftwork

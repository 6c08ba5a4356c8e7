// The few vector operations the kernels need, for AVX-512, AVX2 and 128-bit machines (NEON, SSE).
//
// Arithmetic uses the vector extensions of GCC and Clang. Two things are written per instruction
// set: widening loads, because GCC 12 turns __builtin_convertvector from 8 and 16 bits into scalar
// code; and the fused multiply-add, because a compiler left to contract a * b + c does so in one
// copy of a loop and not in another, and then a row's bits depend on the tile it falls into.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace graftwork {

#if defined(__AVX512F__) && defined(__AVX512BW__)
constexpr int kLanes = 16;
constexpr int kTileRows = 12;  // rows x 2 vectors of accumulators fill 24 of 32 registers
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kTileRows = 6;  // 12 of 16 registers
#else
constexpr int kLanes = 4;
constexpr int kTileRows = 12;  // 24 of 32 registers on NEON
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

inline Vec splat(float x) { return x - Vec{}; }

// a * b + c, rounded once.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;  // no such instruction: rounded twice, the same everywhere
#endif
}

inline Vec fma(Vec a, float b, Vec c) { return fma(a, splat(b), c); }

inline IntVec bits(Vec v) {
  IntVec i;
  std::memcpy(&i, &v, sizeof i);
  return i;
}

inline Vec from_bits(IntVec i) {
  Vec v;
  std::memcpy(&v, &i, sizeof v);
  return v;
}

// Sixteen or fewer int8 -> float.
inline Vec load(const int8_t* p) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  IntVec i;
  for (int lane = 0; lane < kLanes; ++lane) i[lane] = p[lane];
  return __builtin_convertvector(i, Vec);
#endif
}

inline Vec to_float(IntVec i) { return __builtin_convertvector(i, Vec); }

// Two int16 in each lane.
typedef int16_t PairVec __attribute__((vector_size(kLanes * 4)));

inline PairVec load_pairs(const int16_t* p) {
  PairVec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(int16_t* p, PairVec v) { std::memcpy(p, &v, sizeof v); }

// The pair at p in every lane.
inline PairVec splat_pair(const int16_t* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  const IntVec wide = pair - IntVec{};
  PairVec v;
  std::memcpy(&v, &wide, sizeof v);
  return v;
}

// c + a[2i] b[2i] + a[2i + 1] b[2i + 1] in lane i: integers, so exact.
inline IntVec dot_pairs(PairVec a, PairVec b, IntVec c) {
#if defined(__AVX512F__) && defined(__AVX512VNNI__)
  return (IntVec)_mm512_dpwssd_epi32((__m512i)c, (__m512i)a, (__m512i)b);
#elif defined(__AVX512F__) && defined(__AVX512BW__)
  return c + (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return c + (IntVec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__ARM_NEON)
  const int32x4_t low = vmull_s16(vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
  const int32x4_t high = vmull_high_s16((int16x8_t)a, (int16x8_t)b);
  return c + (IntVec)vpaddq_s32(low, high);
#else
  for (int lane = 0; lane < kLanes; ++lane)
    c[lane] += a[2 * lane] * b[2 * lane] + a[2 * lane + 1] * b[2 * lane + 1];
  return c;
#endif
}

// Lane i of the 32 lanes of `out` becomes (p[i], p[i + 32]).
inline void load_pairs_of_32(const int8_t* p, PairVec out[32 / kLanes]) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  // Quarters in the order 0, 2, 1, 3, because the interleaving works on each half by itself.
  const __m256i a = _mm256_permute4x64_epi64(_mm256_loadu_si256((const __m256i*)p), 0xd8);
  const __m256i b = _mm256_permute4x64_epi64(_mm256_loadu_si256((const __m256i*)(p + 32)), 0xd8);
  out[0] = (PairVec)_mm512_cvtepi8_epi16(_mm256_unpacklo_epi8(a, b));
  out[1] = (PairVec)_mm512_cvtepi8_epi16(_mm256_unpackhi_epi8(a, b));
#elif defined(__AVX2__)
  for (int v = 0; v < 4; ++v) {
    const __m128i a = _mm_loadl_epi64((const __m128i*)(p + v * 8));
    const __m128i b = _mm_loadl_epi64((const __m128i*)(p + 32 + v * 8));
    out[v] = (PairVec)_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b));
  }
#else
  for (int i = 0; i < 32; ++i) {
    out[i / kLanes][i % kLanes * 2] = p[i];
    out[i / kLanes][i % kLanes * 2 + 1] = p[i + 32];
  }
#endif
}

// A bfloat16 is the upper half of a float.
struct BFloat16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }

inline float to_float(BFloat16 x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline Vec load(const BFloat16* p) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return (Vec)_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  return (Vec)_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
#else
  IntVec i;
  for (int lane = 0; lane < kLanes; ++lane) i[lane] = int32_t(uint32_t(p[lane].bits) << 16);
  return from_bits(i);
#endif
}

// Blocks of 32 values, of which vector i of the first 16 and the same of the last 16 are read together.
// Of bfloat16 the two halves lie in turns, so that widening both takes two instructions.
constexpr int64_t kTurn = 16;

inline void load_halves(const float* block, int i, Vec* first, Vec* last) {
  *first = load(block + i * kLanes);
  *last = load(block + kTurn + i * kLanes);
}

inline void load_halves(const BFloat16* block, int i, Vec* first, Vec* last) {
  IntVec both;
  std::memcpy(&both, block + 2 * i * kLanes, sizeof both);
  *first = from_bits(both << 16);
  *last = from_bits(both & ~0xffff);
}

// Widened to indices.
inline IntVec load_indices(const uint8_t* p) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  return (IntVec)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (IntVec)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  IntVec i;
  for (int lane = 0; lane < kLanes; ++lane) i[lane] = p[lane];
  return i;
#endif
}

// Lane i of the result is p[index[i]].
inline Vec gather(const float* p, IntVec index) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  return (Vec)_mm512_i32gather_ps((__m512i)index, p, 4);
#elif defined(__AVX2__)
  return (Vec)_mm256_i32gather_ps(p, (__m256i)index, 4);
#else
  Vec v;
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = p[index[lane]];
  return v;
#endif
}

// The first `count` elements, zeros after them; never reads past them.
template <class T>
inline Vec load_first(const T* p, int64_t count) {
  Vec v{};
  for (int64_t lane = 0; lane < count; ++lane) v[lane] = to_float(p[lane]);
  return v;
}

inline void store_first(float* p, Vec v, int64_t count) {
  for (int64_t lane = 0; lane < count; ++lane) p[lane] = v[lane];
}

// p += v, of which `left` elements are there: none where it is not positive.
inline void add_to_first(float* p, Vec v, int64_t left) {
  if (left >= kLanes)
    store(p, load(p) + v);
  else if (left > 0)
    store_first(p, load_first(p, left) + v, left);
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define GRAFTWORK_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#if !defined(GRAFTWORK_SHUFFLE)
#define GRAFTWORK_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntVec{__VA_ARGS__})
#endif

using Lanes = std::make_integer_sequence<int, kLanes>;

// Lane i of the result is lane i ^ kStep of v.
template <int kStep, int... I>
inline Vec swap_lanes(Vec v, std::integer_sequence<int, I...>) {
  return GRAFTWORK_SHUFFLE(v, v, (I ^ kStep)...);
}

// Folds halves onto each other: one fixed order for every caller.
template <int kStep = kLanes / 2>
inline float sum(Vec v) {
  if constexpr (kStep == 0)
    return v[0];
  else
    return sum<kStep / 2>(v + swap_lanes<kStep>(v, Lanes{}));
}

inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }

template <int kStep = kLanes / 2>
inline float max(Vec v) {
  if constexpr (kStep == 0)
    return v[0];
  else
    return max<kStep / 2>(maximum(v, swap_lanes<kStep>(v, Lanes{})));
}

template <int kStep, int... I>
inline Vec first_blocks(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return GRAFTWORK_SHUFFLE(a, b, (I & kStep ? kLanes + I - kStep : I)...);
}

template <int kStep, int... I>
inline Vec second_blocks(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return GRAFTWORK_SHUFFLE(a, b, (I & kStep ? kLanes + I : I + kStep)...);
}

// Transposes a square of kLanes rows by exchanging ever smaller off-diagonal blocks.
template <int kStep = kLanes / 2>
inline void transpose(Vec rows[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if ((i & kStep) == 0) {
      const Vec a = rows[i], b = rows[i + kStep];
      rows[i] = first_blocks<kStep>(a, b, Lanes{});
      rows[i + kStep] = second_blocks<kStep>(a, b, Lanes{});
    }
  if constexpr (kStep > 1) transpose<kStep / 2>(rows);
}

// exp for x <= 88; zero below -87. Relative error about 1e-7 (the polynomial of Cephes' expf).
inline Vec exp(Vec x) {
  const Vec magic = splat(12582912.0f);  // adding 1.5 * 2^23 rounds to the nearest integer
  const IntVec underflow = x < -87.0f;
  x = underflow ? splat(-87.0f) : x;
  const Vec shifted = fma(x, 1.44269504088896341f, magic);
  const Vec n = shifted - magic;
  Vec r = fma(n, -0.693359375f, x);
  r = fma(n, 2.12194440e-4f, r);
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  const IntVec exponent = (bits(shifted) - bits(magic)) << 23;
  const Vec result = from_bits(bits(p) + exponent);
  return underflow ? Vec{} : result;
}

inline Vec tanh(Vec x) {
  // Past 9 tanh is 1 in float32.
  x = x > 9.0f ? splat(9.0f) : x;
  x = x < -9.0f ? splat(-9.0f) : x;
  return 1.0f - 2.0f / (exp(2.0f * x) + 1.0f);
}

}  // namespace graftwork

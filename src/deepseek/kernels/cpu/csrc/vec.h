// Sixteen fp32 lanes: one AVX-512 register or two AVX2 registers.
//
// Everything written with this type rounds in the same order on both instruction sets, so a model gives the same tokens
// on either. DS_ISA names the namespace that the including file is compiled for.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace deepseek {
namespace DS_ISA {

constexpr int kLanes = 16;

#ifdef __AVX512F__

struct Vec {
  __m512 v;
};

static inline Vec zero() { return {_mm512_setzero_ps()}; }
static inline Vec set1(float x) { return {_mm512_set1_ps(x)}; }
static inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
static inline Vec load_fp16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline void store_fp16(uint16_t* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
// The even and the odd ones of 32 bf16 values.
static inline void load_bf16_pairs(const uint16_t* p, Vec& even, Vec& odd) {
  const __m512i pairs = _mm512_loadu_si512(p);
  even.v = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  odd.v = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
static inline Vec load_int8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
static inline Vec load_uint8(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
static inline Vec load_uint16(const uint16_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))))};
}
static inline Vec from_uint8(__m128i x) { return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x))}; }
static inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }    // a * b + c
static inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a * b
static inline Vec round(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a where x < y (false for NaN), else b.
static inline Vec select_less(Vec x, Vec y, Vec a, Vec b) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ), b.v, a.v)};
}
// 2^n for whole n in [-126, 127].
static inline Vec exp2_whole(Vec n) {
  const __m512i e = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
  return {_mm512_castsi512_ps(e)};
}
// The larger magnitude per lane; unlike max() it keeps NaN, whose bits are above those of infinity.
static inline Vec max_magnitude(Vec a, Vec b) {
  const __m512i mask = _mm512_set1_epi32(0x7fffffff);
  return {_mm512_castsi512_ps(_mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a.v), mask),
                                               _mm512_and_si512(_mm512_castps_si512(b.v), mask)))};
}
// Lanes rounded to nearest and stored as int8, saturated.
static inline void store_int8(int8_t* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
#ifdef __AVX512BF16__
// 32 lanes rounded to bf16: a, then b, in the bits of a Vec.
static inline Vec as_bf16(Vec a, Vec b) { return {reinterpret_cast<__m512>(_mm512_cvtne2ps_pbh(b.v, a.v))}; }
static inline void store_bf16(uint16_t* p, Vec a, Vec b) { store(reinterpret_cast<float*>(p), as_bf16(a, b)); }
#endif
static inline __m256 low_half(Vec a) { return _mm512_castps512_ps256(a.v); }
static inline __m256 high_half(Vec a) { return _mm512_extractf32x8_ps(a.v, 1); }

#else

struct Vec {
  __m256 a, b;
};

static inline Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline Vec set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, Vec a) {
  _mm256_storeu_ps(p, a.a);
  _mm256_storeu_ps(p + 8, a.b);
}
static inline Vec load_fp16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
static inline void store_fp16(uint16_t* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(a.b, _MM_FROUND_TO_NEAREST_INT));
}
static inline void load_bf16_pairs(const uint16_t* p, Vec& even, Vec& odd) {
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16));
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  even = {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
  odd = {_mm256_castsi256_ps(_mm256_and_si256(a, high)), _mm256_castsi256_ps(_mm256_and_si256(b, high))};
}
static inline Vec load_int8(const int8_t* p) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}
static inline Vec load_uint16(const uint16_t* p) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x))),
          _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)))};
}
static inline Vec from_uint8(__m128i x) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)))};
}
static inline Vec load_uint8(const uint8_t* p) {
  return from_uint8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline Vec add(Vec x, Vec y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline Vec sub(Vec x, Vec y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline Vec mul(Vec x, Vec y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline Vec div(Vec x, Vec y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline Vec max(Vec x, Vec y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline Vec min(Vec x, Vec y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline Vec fma(Vec x, Vec y, Vec z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline Vec fnma(Vec x, Vec y, Vec z) {
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
static inline Vec round(Vec x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
}
static inline Vec select_less(Vec x, Vec y, Vec a, Vec b) {
  return {_mm256_blendv_ps(b.a, a.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
          _mm256_blendv_ps(b.b, a.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
static inline __m256 exp2_whole8(__m256 n) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
static inline Vec exp2_whole(Vec n) { return {exp2_whole8(n.a), exp2_whole8(n.b)}; }
static inline __m256 max_magnitude8(__m256 x, __m256 y) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(x), mask),
                                              _mm256_and_si256(_mm256_castps_si256(y), mask)));
}
static inline Vec max_magnitude(Vec x, Vec y) { return {max_magnitude8(x.a, y.a), max_magnitude8(x.b, y.b)}; }
static inline void store_int8(int8_t* p, Vec x) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
static inline __m256 low_half(Vec x) { return x.a; }
static inline __m256 high_half(Vec x) { return x.b; }

#endif

static inline Vec load_any(const float* p) { return load(p); }
static inline Vec load_any(const uint16_t* p) { return load_fp16(p); }
static inline Vec load_any(const int8_t* p) { return load_int8(p); }

static inline float first_lane(Vec x) { return _mm_cvtss_f32(_mm256_castps256_ps128(low_half(x))); }

// The sum of the lanes, added in halves.
static inline float reduce_add(Vec x) {
  const __m256 eight = _mm256_add_ps(low_half(x), high_half(x));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

static inline float reduce_max(Vec x) {
  const __m256 eight = _mm256_max_ps(low_half(x), high_half(x));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// The largest magnitude of the lanes; NaN if any lane is.
static inline float reduce_max_magnitude(Vec x) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  const __m256i eight = _mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(low_half(x)), mask),
                                         _mm256_and_si256(_mm256_castps_si256(high_half(x)), mask));
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1))));
}

static inline float square_norm(const float* x, int dim) {
  Vec sum = zero();
  for (int d = 0; d < dim; d += kLanes) sum = fma(load(x + d), load(x + d), sum);
  return reduce_add(sum);
}

// e^x with a relative error below 3e-7; 0 below -87.3, infinity's neighbourhood above 88.3; NaN stays NaN.
// Range reduction and degree-6 polynomial after Cody & Waite.
static inline Vec exp(Vec x) {
  const Vec low = set1(-87.3365f);
  // min and max return their second operand when one is NaN.
  const Vec clamped = max(low, min(set1(88.3762626f), x));
  const Vec n = round(mul(clamped, set1(1.44269504f)));
  Vec r = fnma(n, set1(0.693359375f), clamped);
  r = fnma(n, set1(-2.12194440e-4f), r);
  Vec p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), set1(1.0f));
  return select_less(x, low, zero(), mul(p, exp2_whole(n)));
}

// The same with a relative error below 1e-4, for weights that are estimates: e^x = 2^n 2^r, |r| <= 1/2, and a polynomial of
// degree 3 for 2^r (minimax). NaN stays NaN.
static inline Vec exp_roughly(Vec x) {
  const Vec low = set1(-87.0f);
  const Vec y = mul(max(low, min(set1(88.0f), x)), set1(1.44269504f));
  const Vec n = round(y), r = sub(y, n);
  Vec p = set1(0.0551717f);
  p = fma(p, r, set1(0.2426111f));
  p = fma(p, r, set1(0.6932610f));
  p = fma(p, r, set1(0.9999281f));
  return select_less(x, low, zero(), mul(p, exp2_whole(n)));
}

static inline float fp16_to_float(uint16_t x) { return _cvtsh_ss(x); }
static inline uint16_t float_to_fp16(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }

}  // namespace DS_ISA
}  // namespace deepseek

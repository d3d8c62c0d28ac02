// Scores of sign codes: a table lookup for every four dimensions (Andre et al. 2015, "Cache locality is not enough", and
// the scanner of FAISS), with the query in full precision as in RaBitQ (Gao and Long, SIGMOD 2024, arXiv:2405.12497).
#pragma once
#include <cmath>

#include "layout.h"
#include "vec.h"

namespace deepseek {
namespace DS_ISA {

// What four dimensions of the query add for each of their sixteen sign patterns, as whole steps above the least sum.
struct Lookup {
  float step, least;  // score = step * sum of entries + least
};

// [sign][dimension][pattern]: whether a dimension's bit is that sign.
alignas(64) constexpr float kPatterns[2][4][16] = {
    {{1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0},
     {1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0},
     {1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0},
     {1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0}},
    {{0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1},
     {0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1},
     {0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1},
     {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1}}};

// `query` is rotated. Entries stay below 128, so that two of them add up within a byte.
static inline Lookup make_lookup(const float* query, int dim, uint8_t* table) {
  float least = 0.0f, widest = 0.0f;
  for (int d = 0; d < dim; d += 4) {
    float sum = 0.0f;
    for (int i = 0; i < 4; ++i) sum += std::fabs(query[d + i]);
    widest = sum > widest ? sum : widest;
    least -= sum;
  }
  const float step = widest * (2.0f / 127.0f), inverse = widest > 0.0f ? 127.0f / (2.0f * widest) : 0.0f;
  for (int d = 0; d < dim; d += 4, table += 16) {
    Vec sum = zero();
    for (int i = 0; i < 4; ++i) {
      // Above the least sum, a dimension adds twice its magnitude when the sign agrees.
      const float twice = 2.0f * std::fabs(query[d + i]) * inverse;
      sum = fma(load(kPatterns[query[d + i] >= 0.0f][i]), set1(twice), sum);
    }
    store_int8(reinterpret_cast<int8_t*>(table), sum);
  }
  return {step, least};
}

// sums[h][t] of a page's 64 tokens for H heads; `tables` lie `stride` bytes apart.
template <int H>
static inline void score_codes(const uint8_t* codes, int dim, const uint8_t* tables, int stride, uint16_t* sums) {
#ifdef __AVX512F__
  constexpr int kParts = 1;
  using Bytes = __m512i;
  const auto load_codes = [](const uint8_t* p) { return _mm512_loadu_si512(p); };
  const auto load_table = [](const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  };
  const auto low_bits = [](Bytes x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); };
  const auto high_bits = [](Bytes x) { return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15)); };
  const auto look_up = [](Bytes table, Bytes bits) { return _mm512_shuffle_epi8(table, bits); };
  const auto add_bytes = [](Bytes a, Bytes b) { return _mm512_add_epi8(a, b); };
  const auto add_even = [](Bytes sum, Bytes x) { return _mm512_add_epi16(sum, _mm512_and_si512(x, _mm512_set1_epi16(255))); };
  const auto add_odd = [](Bytes sum, Bytes x) { return _mm512_add_epi16(sum, _mm512_srli_epi16(x, 8)); };
  const auto put = [](uint16_t* p, Bytes x) { _mm512_storeu_si512(p, x); };
  const Bytes none = _mm512_setzero_si512();
#else
  constexpr int kParts = 2;
  using Bytes = __m256i;
  const auto load_codes = [](const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); };
  const auto load_table = [](const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  };
  const auto low_bits = [](Bytes x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); };
  const auto high_bits = [](Bytes x) { return _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15)); };
  const auto look_up = [](Bytes table, Bytes bits) { return _mm256_shuffle_epi8(table, bits); };
  const auto add_bytes = [](Bytes a, Bytes b) { return _mm256_add_epi8(a, b); };
  const auto add_even = [](Bytes sum, Bytes x) { return _mm256_add_epi16(sum, _mm256_and_si256(x, _mm256_set1_epi16(255))); };
  const auto add_odd = [](Bytes sum, Bytes x) { return _mm256_add_epi16(sum, _mm256_srli_epi16(x, 8)); };
  const auto put = [](uint16_t* p, Bytes x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); };
  const Bytes none = _mm256_setzero_si256();
#endif
  for (int part = 0; part < kParts; ++part) {
    Bytes even[H], odd[H];
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) even[h] = odd[h] = none;
    const uint8_t *at = codes + part * 32, *table = tables;
    for (int d = 0; d < dim; d += 8, at += kIndexTokens, table += 32) {
      const Bytes code = load_codes(at), low = low_bits(code), high = high_bits(code);
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) {
        const uint8_t* own = table + h * stride;
        const Bytes both = add_bytes(look_up(load_table(own), low), look_up(load_table(own + 16), high));
        even[h] = add_even(even[h], both);
        odd[h] = add_odd(odd[h], both);
      }
    }
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) {
      put(sums + h * kIndexTokens + part * 16, even[h]);
      put(sums + h * kIndexTokens + 32 + part * 16, odd[h]);
    }
  }
}

constexpr int kLookupHeads = 6;

// Any number of heads, a few at a time.
template <int H = kLookupHeads>
static inline void score_codes(int heads, const uint8_t* codes, int dim, const uint8_t* tables, int stride, uint16_t* sums) {
  for (; heads >= H; heads -= H, tables += H * stride, sums += H * kIndexTokens) score_codes<H>(codes, dim, tables, stride, sums);
  if constexpr (H > 1) {
    if (heads > 0) score_codes<H - 1>(heads, codes, dim, tables, stride, sums);
  }
}

// Sums must not overflow: log weights count up to here, relative to what they are compared with.
constexpr float kHighestLogWeight = 40.0f;

// The sum of a page's weights, whose logs are base + alpha * score; visit(token, sixteen of them).
template <class Visit>
static inline float weigh_codes(const Lookup& lookup, const KeySummary& key, const uint8_t* alphas, const uint16_t* sums, float base,
                                const Visit& visit) {
  const Vec step = set1(lookup.step * key.alpha_scale), least = set1(lookup.least * key.alpha_scale), from = set1(base);
  Vec total = zero();
  for (int t = 0; t < kIndexTokens; t += kLanes) {
    const Vec told = fma(load_uint8(alphas + t), fma(load_uint16(sums + t), step, least), from);
    const Vec log_weights = min(set1(kHighestLogWeight), told);  // in this order NaN stays
    total = add(total, exp_roughly(log_weights));
    visit(t, log_weights);
  }
  return reduce_add(total);
}

static inline float min_float(float a, float b) { return a < b ? a : b; }

}  // namespace DS_ISA
}  // namespace deepseek

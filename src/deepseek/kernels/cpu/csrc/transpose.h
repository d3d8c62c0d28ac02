// Sixteen rows of sixteen lanes, turned into columns.
#pragma once
#include "vec.h"

namespace deepseek {
namespace DS_ISA {

#ifdef __AVX512F__

static inline void transpose(Vec (&v)[16]) {
  __m512 pair[16], four[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pair[i] = _mm512_unpacklo_ps(v[i].v, v[i + 1].v);
    pair[i + 1] = _mm512_unpackhi_ps(v[i].v, v[i + 1].v);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // four[i + j]: column 4 quarter + j of rows i .. i + 3
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512d a = _mm512_castps_pd(pair[i + j]), b = _mm512_castps_pd(pair[i + 2 + j]);
      four[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      four[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 a = _mm512_shuffle_f32x4(four[j], four[4 + j], 0x88), b = _mm512_shuffle_f32x4(four[8 + j], four[12 + j], 0x88);
    const __m512 c = _mm512_shuffle_f32x4(four[j], four[4 + j], 0xdd), d = _mm512_shuffle_f32x4(four[8 + j], four[12 + j], 0xdd);
    v[j].v = _mm512_shuffle_f32x4(a, b, 0x88);
    v[8 + j].v = _mm512_shuffle_f32x4(a, b, 0xdd);
    v[4 + j].v = _mm512_shuffle_f32x4(c, d, 0x88);
    v[12 + j].v = _mm512_shuffle_f32x4(c, d, 0xdd);
  }
}

#else

static inline void transpose_8x8(__m256* v) {
  __m256 pair[8], four[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    pair[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m256d a = _mm256_castps_pd(pair[i + j]), b = _mm256_castps_pd(pair[i + 2 + j]);
      four[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
      four[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    v[j] = _mm256_permute2f128_ps(four[j], four[4 + j], 0x20);
    v[4 + j] = _mm256_permute2f128_ps(four[j], four[4 + j], 0x31);
  }
}

static inline void transpose(Vec (&v)[16]) {
  __m256 block[8];
  for (int row = 0; row < 16; row += 8) {
    for (int i = 0; i < 8; ++i) block[i] = v[row + i].a;
    transpose_8x8(block);
    __m256 other[8];
    for (int i = 0; i < 8; ++i) other[i] = v[row + i].b;
    transpose_8x8(other);
    for (int i = 0; i < 8; ++i) v[row + i] = {block[i], other[i]};
  }
  for (int i = 0; i < 8; ++i) {  // [rows 0-7: columns 0-7, 8-15] [rows 8-15: likewise]
    const __m256 upper = v[i].b;
    v[i].b = v[8 + i].a;
    v[8 + i] = {upper, v[8 + i].b};
  }
}

#endif

// Rows of keys [tokens][dim] as floats in blocks of sixteen tokens, [tokens / 16][dim][16]; `ahead` leads to what will be
// read next. Pages lie anywhere, so the processor cannot guess it.
template <class T>
static inline void load_transposed(const T* from, int tokens, int dim, int64_t ahead, float* to) {
  constexpr int kLine = 64 / static_cast<int>(sizeof(T));
  for (int t = 0; t < tokens; t += kLanes, from += kLanes * dim) {
    for (int i = 0; i < kLanes * dim; i += kLine) _mm_prefetch(reinterpret_cast<const char*>(from + ahead + i), _MM_HINT_T0);
    for (int d = 0; d < dim; d += kLanes, to += kLanes * kLanes) {
      Vec v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) v[i] = load_any(from + i * dim + d);
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) store(to + i * kLanes, v[i]);
    }
  }
}

}  // namespace DS_ISA
}  // namespace deepseek

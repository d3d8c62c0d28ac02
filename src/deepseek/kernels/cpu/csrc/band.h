// Products of one band (16 output rows) with a few quantized activation rows.
//
// Integer sums over a group are exact, and floats are added group by group in one order with the same operations, so
// the result of a row is the same to the bit for any number of rows at once and on any instruction set:
//   y = sum over groups of  (weight scale * activation scale) * dot  -  minimum * activation sum
#pragma once
#include "rows.h"

namespace deepseek {
namespace DS_ISA {

#define DS_INLINE inline __attribute__((always_inline))

// Reads a band's scales and minima, group by group in order, as floats. 6-bit weights have two scales per group.
template <Format F>
struct ScaleReader {
  const uint8_t* meta;
  Vec d, dmin;                      // of the superblock
  alignas(32) uint8_t six[2][128];  // q4_k: its scales and minima, [group][16]

  explicit ScaleReader(const uint8_t* band_meta) : meta(band_meta) {}

  DS_INLINE void read(int g, Vec& scale, Vec& second, Vec& minimum) {
    if constexpr (F == Format::kInt8) {
      scale = load_fp16(reinterpret_cast<const uint16_t*>(meta + g * 32));
    } else if constexpr (F == Format::kInt8Channel) {
      scale = load(reinterpret_cast<const float*>(meta));
    } else if constexpr (F == Format::kInt4) {
      scale = load_fp16(reinterpret_cast<const uint16_t*>(meta + g * 64));
      minimum = load_fp16(reinterpret_cast<const uint16_t*>(meta + g * 64 + 32));
    } else if constexpr (F == Format::kQ4K) {
      if (g % kSuper == 0) unpack(meta + g / kSuper * 256);
      scale = mul(load_uint8(six[0] + g % kSuper * 16), d);
      minimum = mul(load_uint8(six[1] + g % kSuper * 16), dmin);
    } else {
      const uint8_t* super = meta + g / kSuper * 288;
      if (g % kSuper == 0) d = load_fp16(reinterpret_cast<const uint16_t*>(super + 256));
      const int8_t* scales = reinterpret_cast<const int8_t*>(super) + g % kSuper * 32;
      scale = mul(load_int8(scales), d);
      second = mul(load_int8(scales + 16), d);
    }
    (void)second;
    (void)minimum;
  }

 private:
  DS_INLINE void unpack(const uint8_t* super) {
    d = load_fp16(reinterpret_cast<const uint16_t*>(super + 192));
    dmin = load_fp16(reinterpret_cast<const uint16_t*>(super + 224));
    unpack_part(super, six[0]);
    unpack_part(super + 96, six[1]);
  }

  // 64 bytes of low four bits (groups 0 to 3, and 4 to 7 above them), then 32 of high bits: group pair p at bit 2p.
  static DS_INLINE void unpack_part(const uint8_t* part, uint8_t* out) {
    const __m256i low = _mm256_set1_epi8(15), high = _mm256_set1_epi8(0x30);
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(part));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(part + 32));
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(part + 64));
    const __m256i lows[4] = {a, b, _mm256_srli_epi16(a, 4), _mm256_srli_epi16(b, 4)};
    const __m256i highs[4] = {_mm256_slli_epi16(h, 4), _mm256_slli_epi16(h, 2), h, _mm256_srli_epi16(h, 2)};
    for (int p = 0; p < 4; ++p) {
      const __m256i both = _mm256_or_si256(_mm256_and_si256(lows[p], low), _mm256_and_si256(highs[p], high));
      _mm256_store_si256(reinterpret_cast<__m256i*>(out + 32 * p), both);
    }
  }
};

template <Format F>
constexpr bool has_minimum = F == Format::kInt4 || F == Format::kQ4K;

// How far ahead weights are asked for. Bands lie one after another, so this reaches into the next one; the processor's own
// prefetchers stop at every 4 KiB and lose half of the speed.
constexpr int kAhead = 8192;

static DS_INLINE void prefetch(const uint8_t* p, int bytes) {
  for (int i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(p + i + kAhead), _MM_HINT_T0);
}

// Asks for what lies kAhead behind group g of a band.
template <Format F>
static DS_INLINE void prefetch_group(const Matrix& m, const uint8_t* quants, const uint8_t* meta, int g) {
  constexpr int bytes = F == Format::kInt8 || F == Format::kInt8Channel ? 512 : 256;
  prefetch(quants + g * bytes, bytes);
  if constexpr (F == Format::kQ6K) prefetch(quants + m.groups * 256 + g * 128, 128);
  if constexpr (F == Format::kInt8) prefetch(meta + g * 32, g % 2 ? 0 : 64);
  if constexpr (F == Format::kInt4) prefetch(meta + g * 64, 64);
  if constexpr (F == Format::kQ4K || F == Format::kQ6K) prefetch(meta + g * 32, g % 2 ? 0 : 64);
}

static inline int32_t four(const int8_t* p) {
  int32_t value;
  std::memcpy(&value, p, 4);
  return value;
}

#ifdef __AVX512F__

constexpr int kMaxRows = 8;

static inline __m512i load512(const uint8_t* p) { return _mm512_loadu_si512(p); }

// The eight quads of group g as unsigned bytes (int8 shifted by 128, 6 bits by 32).
template <Format F>
static DS_INLINE void load_quads(const Matrix& m, const uint8_t* quants, int g, __m512i quad[8]) {
  if constexpr (F == Format::kInt8 || F == Format::kInt8Channel) {
    const __m512i flip = _mm512_set1_epi8(-128);
    for (int j = 0; j < 8; ++j) quad[j] = _mm512_xor_si512(load512(quants + g * 512 + j * 64), flip);
  } else {
    const __m512i mask = _mm512_set1_epi8(15);
    for (int j = 0; j < 4; ++j) {
      const __m512i raw = load512(quants + g * 256 + j * 64);
      quad[j] = _mm512_and_si512(raw, mask);
      quad[j + 4] = _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask);
    }
    if constexpr (F == Format::kQ6K) {
      const uint8_t* high = quants + m.groups * 256 + g * 128;
      const __m512i bits = _mm512_set1_epi8(0x30);
      const __m512i first = load512(high), second = load512(high + 64);
      // Bits 2j, 2j + 1 go to bits 4, 5.
      quad[0] = _mm512_or_si512(quad[0], _mm512_and_si512(_mm512_slli_epi16(first, 4), bits));
      quad[1] = _mm512_or_si512(quad[1], _mm512_and_si512(_mm512_slli_epi16(first, 2), bits));
      quad[2] = _mm512_or_si512(quad[2], _mm512_and_si512(first, bits));
      quad[3] = _mm512_or_si512(quad[3], _mm512_and_si512(_mm512_srli_epi16(first, 2), bits));
      quad[4] = _mm512_or_si512(quad[4], _mm512_and_si512(_mm512_slli_epi16(second, 4), bits));
      quad[5] = _mm512_or_si512(quad[5], _mm512_and_si512(_mm512_slli_epi16(second, 2), bits));
      quad[6] = _mm512_or_si512(quad[6], _mm512_and_si512(second, bits));
      quad[7] = _mm512_or_si512(quad[7], _mm512_and_si512(_mm512_srli_epi16(second, 2), bits));
    }
  }
}

// sum + the products of half a group's quads with an activation row.
static DS_INLINE __m512i dot_half(__m512i sum, const __m512i* quad, const int8_t* a) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) sum = _mm512_dpbusd_epi32(sum, quad[j], _mm512_set1_epi32(four(a + 4 * j)));
  return sum;
}

// The same for an activation in one or two parts.
template <int Parts>
static DS_INLINE __m512i dot_parts(__m512i sum, const __m512i* quad, const int8_t* high, const int8_t* low) {
  if constexpr (Parts == 1) return dot_half(sum, quad, high);
  return _mm512_add_epi32(dot_half(sum, quad, low), _mm512_slli_epi32(dot_half(_mm512_setzero_si512(), quad, high), 8));
}

// out[i][16] = product of rows row0 .. row0 + M - 1, which lie in one tile of 16.
template <Format F, int Parts, int M>
static inline void dot_band(const Matrix& m, int band, const Rows& x, int row0, float* out) {
  const uint8_t *quants = m.quants(band), *meta = m.meta(band);
  const size_t start = static_cast<size_t>(row0) * x.ld;
  const int8_t *high = x.high + start, *low = x.low + start;
  const size_t base = x.at(row0, 0), half_base = x.half_at(row0, 0);
  Vec acc[M];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) acc[i] = zero();
  ScaleReader<F> scales(meta);
  for (int g = 0; g < m.groups; ++g, high += kGroup, low += kGroup) {
    if constexpr (M <= 4) prefetch_group<F>(m, quants, meta, g);
    __m512i quad[8];
    load_quads<F>(m, quants, g, quad);
    Vec scale, second, minimum;
    scales.read(g, scale, second, minimum);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const int8_t *a = high + i * x.ld, *b = low + i * x.ld;
      const size_t at = base + g * 16 + i;
      const Vec by = set1(x.scale[at]);
      if constexpr (F == Format::kQ6K) {
        const int32_t* zero = x.zero32 + half_base + g * 32 + i;
        const __m512i first = dot_parts<Parts>(_mm512_set1_epi32(zero[0]), quad, a, b);
        acc[i] = fma(Vec{_mm512_cvtepi32_ps(first)}, mul(scale, by), acc[i]);
        const __m512i rest = dot_parts<Parts>(_mm512_set1_epi32(zero[16]), quad + 4, a + 16, b + 16);
        acc[i] = fma(Vec{_mm512_cvtepi32_ps(rest)}, mul(second, by), acc[i]);
      } else {
        const __m512i start = has_minimum<F> ? _mm512_setzero_si512() : _mm512_set1_epi32(x.zero128[at]);
        __m512i dot;
        if constexpr (Parts == 1) {
          dot = dot_half(dot_half(start, quad, a), quad + 4, a + 16);
        } else {
          const __m512i top = dot_half(dot_half(_mm512_setzero_si512(), quad, a), quad + 4, a + 16);
          dot = _mm512_add_epi32(dot_half(dot_half(start, quad, b), quad + 4, b + 16), _mm512_slli_epi32(top, 8));
        }
        acc[i] = fma(Vec{_mm512_cvtepi32_ps(dot)}, mul(scale, by), acc[i]);
      }
      if constexpr (has_minimum<F>) acc[i] = fnma(minimum, set1(x.sum[at]), acc[i]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) store(out + i * 16, acc[i]);
}

#else

constexpr int kMaxRows = 4;

static inline __m256i load256(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// Products of quads j and j + 4 (eight of the sixteen rows) with an activation row, summed in int16 without overflow:
// u4 * s8 stays below 3,811 and u6 * s8 below 16,003 per pair; int8 is multiplied as |w| * (sign(w) a) and not summed.
template <Format F>
struct Dot {
  __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();

  static __m256i widen(__m256i words) { return _mm256_madd_epi16(words, _mm256_set1_epi16(1)); }

  void add(int j, __m256i first, __m256i second, const int8_t* a) {
    const __m256i x = _mm256_set1_epi32(four(a + 4 * j)), y = _mm256_set1_epi32(four(a + 16 + 4 * j));
    if constexpr (has_minimum<F>) {
      low = _mm256_add_epi16(low, _mm256_maddubs_epi16(first, x));
      low = _mm256_add_epi16(low, _mm256_maddubs_epi16(second, y));
    } else if constexpr (F == Format::kQ6K) {
      low = _mm256_add_epi32(low, widen(_mm256_maddubs_epi16(first, x)));
      high = _mm256_add_epi32(high, widen(_mm256_maddubs_epi16(second, y)));
    } else {
      const __m256i p = _mm256_maddubs_epi16(_mm256_abs_epi8(first), _mm256_sign_epi8(x, first));
      const __m256i r = _mm256_maddubs_epi16(_mm256_abs_epi8(second), _mm256_sign_epi8(y, second));
      low = _mm256_add_epi32(low, _mm256_add_epi32(widen(p), widen(r)));
    }
  }

  __m256i total() const { return has_minimum<F> ? widen(low) : low; }
};

template <Format F, int Parts, int M>
static inline void dot_band(const Matrix& m, int band, const Rows& x, int row0, float* out) {
  const uint8_t *quants = m.quants(band), *meta = m.meta(band);
  const size_t start = static_cast<size_t>(row0) * x.ld;
  const int8_t* q[2] = {x.high + start, x.low + start};
  const size_t base = x.at(row0, 0), half_base = x.half_at(row0, 0);
  __m256 acc[2][M];
#pragma GCC unroll 4
  for (int i = 0; i < M; ++i) acc[0][i] = acc[1][i] = _mm256_setzero_ps();
  const __m256i mask = _mm256_set1_epi8(15), bits = _mm256_set1_epi8(0x30);
  ScaleReader<F> reader(meta);
  for (int g = 0; g < m.groups; ++g, q[0] += kGroup, q[1] += kGroup) {
    prefetch_group<F>(m, quants, meta, g);
    Vec scales, seconds, minima;
    reader.read(g, scales, seconds, minima);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      Dot<F> dot[Parts][M];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        __m256i first, second;
        if constexpr (F == Format::kInt8 || F == Format::kInt8Channel) {
          first = load256(quants + g * 512 + j * 64 + h * 32);
          second = load256(quants + g * 512 + (j + 4) * 64 + h * 32);
        } else {
          const __m256i raw = load256(quants + g * 256 + j * 64 + h * 32);
          first = _mm256_and_si256(raw, mask);
          second = _mm256_and_si256(_mm256_srli_epi16(raw, 4), mask);
          if constexpr (F == Format::kQ6K) {
            const uint8_t* high = quants + m.groups * 256 + g * 128 + h * 32;
            const __m256i a = load256(high), b = load256(high + 64);
            const __m128i left = _mm_cvtsi32_si128(j < 2 ? 4 - 2 * j : 0), right = _mm_cvtsi32_si128(j == 3 ? 2 : 0);
            auto moved = [&](__m256i v) { return _mm256_and_si256(_mm256_srl_epi16(_mm256_sll_epi16(v, left), right), bits); };
            first = _mm256_or_si256(first, moved(a));
            second = _mm256_or_si256(second, moved(b));
          }
        }
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) {
          for (int part = 0; part < Parts; ++part) dot[part][i].add(j, first, second, q[part] + i * x.ld);
        }
      }
      const __m256 scale = h ? scales.b : scales.a, second = h ? seconds.b : seconds.a, minimum = h ? minima.b : minima.a;
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) {
        const size_t at = base + g * 16 + i;
        const __m256 by = _mm256_set1_ps(x.scale[at]);
        const auto whole = [&](auto half) {
          const __m256i high = half(dot[0][i]);
          if constexpr (Parts == 1) return high;
          return _mm256_add_epi32(_mm256_slli_epi32(high, 8), half(dot[Parts - 1][i]));
        };
        __m256i total = whole([](const Dot<F>& d) { return d.total(); });
        if constexpr (F == Format::kQ6K) {
          const int32_t* zero = x.zero32 + half_base + g * 32 + i;
          total = _mm256_add_epi32(total, _mm256_set1_epi32(zero[0]));
          acc[h][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_mul_ps(scale, by), acc[h][i]);
          total = _mm256_add_epi32(whole([](const Dot<F>& d) { return d.high; }), _mm256_set1_epi32(zero[16]));
          acc[h][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_mul_ps(second, by), acc[h][i]);
        } else {
          acc[h][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_mul_ps(scale, by), acc[h][i]);
        }
        if constexpr (has_minimum<F>) acc[h][i] = _mm256_fnmadd_ps(minimum, _mm256_set1_ps(x.sum[at]), acc[h][i]);
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < M; ++i) {
    _mm256_storeu_ps(out + i * 16, acc[0][i]);
    _mm256_storeu_ps(out + i * 16 + 8, acc[1][i]);
  }
}

#endif

// Columns k and k + 1 of a floating band.
template <Format F>
static DS_INLINE void load_pair(const uint16_t* w, int k, Vec& even, Vec& odd) {
  if constexpr (F == Format::kFp16) {
    even = load_fp16(w + k * 16);
    odd = load_fp16(w + k * 16 + 16);
  } else {
    load_bf16_pairs(w + k * 16, even, odd);
  }
}

// Floating weights: out[b][i][16] for B bands and M rows of fp32 activations, summed column by column.
template <Format F, int M, int B>
static inline void dot_float(const Matrix& m, int band, const float* x, int ld, float* out, int band_stride) {
  const uint16_t* w[B];
  Vec acc[B][M];
#pragma GCC unroll 8
  for (int b = 0; b < B; ++b) {
    w[b] = reinterpret_cast<const uint16_t*>(m.quants(band + b));
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) acc[b][i] = zero();
  }
  const int cols = m.padded_cols();
  for (int k = 0; k < cols; k += 2) {
    Vec even[B], odd[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) load_pair<F>(w[b], k, even[b], odd[b]);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const float* at = x + static_cast<size_t>(i) * ld + k;
      const Vec first = set1(at[0]), second = set1(at[1]);
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b) acc[b][i] = fma(odd[b], second, fma(even[b], first, acc[b][i]));
    }
  }
#pragma GCC unroll 8
  for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) store(out + b * band_stride + i * 16, acc[b][i]);
}

}  // namespace DS_ISA
}  // namespace deepseek

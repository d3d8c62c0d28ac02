// Products of wide rows: weights dequantized to bf16 panels, [group][16 column pairs][16 rows][2] of a band, a few bands at a
// time, and multiplied on the matrix unit, which adds in fp32. Dequantizing costs as much as six tiles of rows, so this is for prompts and large batches.
//
// A row's sum runs over the columns in one order, whatever the number of rows.
#pragma once
#include "band.h"

#ifdef __AMX_BF16__

namespace deepseek {
namespace DS_ISA {

// Two columns of sixteen rows, rounded to bf16 and side by side.
static DS_INLINE __m512i pair_bf16(__m512 even, __m512 odd) {
  alignas(64) static constexpr uint16_t kSideBySide[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                           8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
  return _mm512_permutexvar_epi16(_mm512_load_si512(kSideBySide), both);
}

template <Format F>
static DS_INLINE void widen_group(const Matrix& m, const uint8_t* quants, int g, ScaleReader<F>& reader, uint16_t* out) {
  Vec scale, second, minimum;
  prefetch_group<F>(m, quants, reader.meta, g);
  reader.read(g, scale, second, minimum);
  __m512i quad[8];
  load_quads<F>(m, quants, g, quad);
  constexpr float kOffset = F == Format::kQ6K ? 32.0f : has_minimum<F> ? 0.0f : 128.0f;
  const __m512i byte = _mm512_set1_epi32(255);
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    const Vec by = F == Format::kQ6K && j >= 4 ? second : scale;
    const Vec least = has_minimum<F> ? minimum : mul(by, set1(kOffset));
    const auto value = [&](__m512i q) __attribute__((always_inline)) {
      return _mm512_fmsub_ps(_mm512_cvtepi32_ps(q), by.v, least.v);
    };
    const __m512 a = value(_mm512_and_si512(quad[j], byte));
    const __m512 b = value(_mm512_and_si512(_mm512_srli_epi32(quad[j], 8), byte));
    const __m512 c = value(_mm512_and_si512(_mm512_srli_epi32(quad[j], 16), byte));
    const __m512 d = value(_mm512_srli_epi32(quad[j], 24));
    _mm512_storeu_si512(out + j * 64, pair_bf16(a, b));
    _mm512_storeu_si512(out + j * 64 + 32, pair_bf16(c, d));
  }
}

// Groups [first, last) of a band as a bf16 panel, in `room` or where the weights lie. K-quants: `first` begins a superblock.
template <Format F>
static inline const uint16_t* widen_band(const Matrix& m, int band, int first, int last, uint16_t* room) {
  const uint8_t* quants = m.quants(band);
  if constexpr (F == Format::kBf16) {
    return reinterpret_cast<const uint16_t*>(quants) + static_cast<size_t>(first) * 512;
  } else {
    ScaleReader<F> reader(m.meta(band));
    for (int g = first; g < last; ++g) widen_group<F>(m, quants, g, reader, room + (g - first) * 512);
    return room;
  }
}

// Tile registers: 0 to 3 sums [row tile][band], 4 and 5 rows, 6 and 7 weights; all of 16 rows of 64 bytes.
static inline void configure_tiles() {
  alignas(64) struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  // GCC 12 does not see that the instruction reads memory, and drops the stores before it.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// Adds products of one or two tiles of rows with two bands to out[band][tile][16][16], or begins with them.
template <int Tiles>
static inline void wide_tile(const uint16_t* a, size_t a_stride, const uint16_t* first, const uint16_t* second, int groups,
                             float* out, size_t stride, bool begin) {
  if (begin) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (Tiles == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, out, 64);
    _tile_loadd(1, out + stride, 64);
    if constexpr (Tiles == 2) {
      _tile_loadd(2, out + 256, 64);
      _tile_loadd(3, out + stride + 256, 64);
    }
  }
  for (int g = 0; g < groups; ++g) {
    _tile_loadd(4, a + g * 512, 64);
    _tile_loadd(6, first + g * 512, 64);
    _tile_loadd(7, second + g * 512, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (Tiles == 2) {
      _tile_loadd(5, a + a_stride + g * 512, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, 64);
  _tile_stored(1, out + stride, 64);
  if constexpr (Tiles == 2) {
    _tile_stored(2, out + 256, 64);
    _tile_stored(3, out + stride + 256, 64);
  }
  // The compiler does not know that these instructions write memory.
  asm volatile("" : : "r"(out) : "memory");
}

// With many rows, bands are taken together and columns in chunks: two bands' panels of a chunk stay in the first-level cache
// while all rows pass by them, and the rows of a chunk in the second-level cache while the bands pass by.
struct WideBlock {
  static constexpr int kRows = 512;      // at once; sums of more do not stay near
  static constexpr int kFewRows = 64;    // weights arrive slower than so many rows are multiplied: read them in order
  static constexpr int kFewBands = 4;
  static constexpr int kManyBands = 8;
  static constexpr int kChunk = kSuper;  // groups
  static constexpr int kWhole = 20;      // matrices with no more groups are not cut

  int rows, bands, chunk;

  WideBlock(int count, int groups)
      : rows(count < kRows ? (count + 31) / 32 * 32 : kRows),
        bands(count <= kFewRows ? kFewBands : kManyBands),
        chunk(count <= kFewRows || groups <= kWhole ? groups : kChunk) {}

  // Panels of `bands` bands, then their sums.
  size_t panel() const { return static_cast<size_t>(chunk) * 512; }
  uint16_t* panels(uint8_t* room) const { return reinterpret_cast<uint16_t*>(room); }
  float* product(uint8_t* room) const { return reinterpret_cast<float*>(room + bands * panel() * sizeof(uint16_t)); }
  size_t bytes() const { return bands * (panel() * sizeof(uint16_t) + rows * 16 * sizeof(float)); }
};

// `count` wide rows times up to block.bands bands, which the sink gets as rows from x.narrow on.
template <Format F, class Sink>
static void wide_unit(const Matrix& m, int band, int bands, const Activations& x, int count, const WideBlock& block,
                      uint8_t* room, const Sink& sink) {
  const size_t stride = static_cast<size_t>(x.rows.groups) * 512;  // rows may be wider than the matrix
  const int sums = block.rows * 16;                                // of a band
  float* product = block.product(room);
  for (int start = 0; start < count; start += block.rows) {
    const int rows = count - start < block.rows ? count - start : block.rows;
    for (int first = 0; first < m.groups; first += block.chunk) {
      const int last = m.groups - first < block.chunk ? m.groups : first + block.chunk;
      for (int b = 0; b < bands; b += 2) {
        uint16_t* panel = block.panels(room) + b * block.panel();
        const uint16_t* left = widen_band<F>(m, band + b, first, last, panel);
        // Without a second band the first is computed twice, into sums that nobody reads.
        const uint16_t* right = b + 1 < bands ? widen_band<F>(m, band + b + 1, first, last, panel + block.panel()) : left;
        for (int row = 0; row < rows; row += 32) {
          const uint16_t* a = x.wide_tile((start + row) / 16) + static_cast<size_t>(first) * 512;
          float* out = product + b * sums + row * 16;
          if (rows - row > 16) {
            wide_tile<2>(a, stride, left, right, last - first, out, sums, first == 0);
          } else {
            wide_tile<1>(a, stride, left, right, last - first, out, sums, first == 0);
          }
        }
      }
    }
    sink(band, bands, x.narrow + start, rows, product, sums);
  }
}

}  // namespace DS_ISA
}  // namespace deepseek

#endif

// Tiles of 16 activation rows times one band on AMX (Intel's matrix unit), from weights unpacked to int8 ("panel").
#pragma once
#include "band.h"

#ifdef __AMX_INT8__

namespace deepseek {
namespace DS_ISA {

// A band unpacked: int8 quads [group][8][64], scales [group * parts][16], minima [group][16].
struct Panel {
  const int8_t* quads;
  const float* scales;
  const float* minima;
};

static inline size_t panel_bytes(int groups) { return static_cast<size_t>(groups) * (512 + 2 * 64 + 64); }

// Unpacks `band` into `room`; int8 quads are read where they are.
template <Format F>
static inline Panel unpack_band(const Matrix& m, int band, uint8_t* room) {
  const uint8_t *quants = m.quants(band), *meta = m.meta(band);
  constexpr int parts = F == Format::kQ6K ? 2 : 1;
  constexpr bool in_place = F == Format::kInt8 || F == Format::kInt8Channel;
  int8_t* quads = reinterpret_cast<int8_t*>(room);
  float* scales = reinterpret_cast<float*>(room + static_cast<size_t>(m.groups) * 512);
  float* minima = scales + static_cast<size_t>(m.groups) * 32;
  ScaleReader<F> reader(meta);
  for (int g = 0; g < m.groups; ++g) {
    Vec scale, second, minimum;
    reader.read(g, scale, second, minimum);
    store(scales + g * parts * 16, scale);
    if constexpr (parts == 2) store(scales + g * 32 + 16, second);
    if constexpr (has_minimum<F>) store(minima + g * 16, minimum);
    if constexpr (!in_place) {
      __m512i quad[8];
      load_quads<F>(m, quants, g, quad);
      for (int j = 0; j < 8; ++j) {
        if constexpr (F == Format::kQ6K) quad[j] = _mm512_sub_epi8(quad[j], _mm512_set1_epi8(32));
        _mm512_storeu_si512(quads + g * 512 + j * 64, quad[j]);
      }
    }
  }
  return {in_place ? reinterpret_cast<const int8_t*>(quants) : quads, scales, minima};
}

// Tile registers: 0, 1 sums; 2, 3 activations of 32 columns; 4, 5 weights of 32 columns; 6, 7 the same of 16 columns.
static inline void configure_tiles() {
  alignas(64) struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 32, 32, 64, 64, 16, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 8, 8, 16, 4};
  } config;
  // GCC 12 does not see that the instruction reads memory, and drops the stores before it.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

static inline void release_tiles() { _tile_release(); }

// out[16][16] = rows of the tile times the band. Two products are under way in the matrix unit (two groups, or the halves
// of one with 6-bit weights) while the two before are scaled and added; they are fetched after that, when they are done.
template <Format F>
static inline void dot_tile(const Panel& p, int groups, const Rows& x, int tile, float* out) {
  constexpr bool halves = F == Format::kQ6K;
  constexpr int step = halves ? 1 : 2;
  alignas(64) int32_t dots[2][256];
  const int8_t* q = x.q + static_cast<size_t>(tile) * 16 * x.ld;
  const int8_t* quads = p.quads;
  const float* by = x.scale + static_cast<size_t>(tile) * x.groups * 16;
  const float* sum = x.sum + static_cast<size_t>(tile) * x.groups * 16;
  const size_t ld = x.ld;
  Vec acc[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) acc[i] = zero();

  auto issue = [&](int g, bool both) __attribute__((always_inline)) {
    _tile_zero(0);
    if constexpr (halves) {
      _tile_zero(1);
      _tile_loadd(6, q + g * 32, ld);
      _tile_loadd(7, quads + g * 512, 64);
      _tile_dpbssd(0, 6, 7);
      _tile_loadd(6, q + g * 32 + 16, ld);
      _tile_loadd(7, quads + g * 512 + 256, 64);
      _tile_dpbssd(1, 6, 7);
    } else {
      _tile_loadd(2, q + g * 32, ld);
      _tile_loadd(4, quads + g * 512, 64);
      _tile_dpbssd(0, 2, 4);
      if (both) {
        _tile_zero(1);
        _tile_loadd(3, q + g * 32 + 32, ld);
        _tile_loadd(5, quads + g * 512 + 512, 64);
        _tile_dpbssd(1, 3, 5);
      }
    }
  };
  auto fetch = [&](bool both) __attribute__((always_inline)) {
    _tile_stored(0, dots[0], 64);
    if (both) _tile_stored(1, dots[1], 64);
    // The compiler does not know that these instructions write memory.
    asm volatile("" : : "r"(dots) : "memory");
  };
  auto add_scaled = [&](int g, int slot) __attribute__((always_inline)) {
    const Vec scale = load(p.scales + (halves ? 2 * g + slot : g) * 16);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const Vec dot{_mm512_cvtepi32_ps(_mm512_load_si512(dots[slot] + i * 16))};
      acc[i] = fma(dot, mul(scale, set1(by[g * 16 + i])), acc[i]);
    }
    if constexpr (has_minimum<F>) {
      const Vec minimum = load(p.minima + g * 16);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) acc[i] = fnma(minimum, set1(sum[g * 16 + i]), acc[i]);
    }
  };
  auto consume = [&](int g) __attribute__((always_inline)) {
    add_scaled(g, 0);
    add_scaled(halves ? g : g + 1, 1);
  };

  if (groups < step) {
    issue(0, false);
    fetch(false);
    add_scaled(0, 0);
  } else {
    issue(0, true);
    fetch(true);
    int g = 0;
    for (; g + 2 * step <= groups; g += step) {
      issue(g + step, true);
      consume(g);
      fetch(true);
    }
    if (g + step < groups) {
      issue(g + step, false);
      consume(g);
      fetch(false);
      add_scaled(g + step, 0);
    } else {
      consume(g);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) store(out + i * 16, acc[i]);
}

}  // namespace DS_ISA
}  // namespace deepseek

#endif

// Matrix products of a step: which thread computes which bands, and what happens to the results.
#pragma once
#include "band.h"
#include "model.h"
#include "team.h"
#include "wide.h"

namespace deepseek {
namespace DS_ISA {

enum Activation : int { kSilu = 0, kGeluTanh = 1 };

// act(gate) * up; gelu's tanh form is gate * sigmoid(2 z).
static inline Vec gated(Vec gate, Vec up, int kind) {
  Vec z = gate;
  if (kind == kGeluTanh) {
    const Vec cubed = mul(mul(gate, gate), gate);
    z = mul(set1(1.5957691216f), fma(set1(0.044715f), cubed, gate));
  }
  const Vec e = exp(sub(zero(), z));
  return mul(div(gate, add(set1(1.0f), e)), up);
}

// Adds a product to (or writes it over) columns of y.
struct Store {
  float* y;
  int ld;
  const float* bias;  // or null; padded to whole bands
  bool accumulate;
  const RowGains* gains = nullptr;  // of outputs from `gain_offset` on; or null
  int gain_offset = 0;

  static constexpr int kUnit = 1;

  void operator()(int band, int bands, int row0, int rows, const float* product, int stride) const {
    for (int b = 0; b < bands; ++b) {
      const int column = (band + b) * kBand;
      const Vec shift = bias ? load(bias + column) : zero();
      for (int i = 0; i < rows; ++i) {
        float* to = y + static_cast<size_t>(row0 + i) * ld + column;
        Vec value = load(product + b * stride + i * 16);
        if (const float* gain = gains ? gains->of(row0 + i) : nullptr) value = mul(value, load(gain + gain_offset + column));
        if (bias) value = add(value, shift);
        if (accumulate) value = add(load(to), value);
        store(to, value);
      }
    }
  }
};

// Gate and up rows alternate in 32s: four bands make 32 inner values, packed or kept as floats for the next matrix.
struct Gate {
  int kind;
  const float* bias;
  const Activations* packed;  // or null
  float* y;                   // or null
  int ld;
  const float* shift = nullptr;  // [rows][shift_ld] in the order of the bands, added to rows that are `adapted`; or null
  int shift_ld = 0;
  const uint16_t* adapted = nullptr;
  const RowGains* gains = nullptr;

  static constexpr int kUnit = 4;

  void operator()(int band, int bands, int row0, int count, const float* product, int stride) const {
    for (int b = 0; b < bands; b += 4) {
      const int group = (band + b) / 4;
      for (int i = 0; i < count; ++i) {
        const float* gain = gains ? gains->of(row0 + i) : nullptr;
        Vec v[4];
        for (int part = 0; part < 4; ++part) {
          v[part] = load(product + (b + part) * stride + i * 16);
          if (gain) v[part] = mul(v[part], load(gain + (band + b + part) * kBand));
          if (bias) v[part] = add(v[part], load(bias + (band + b + part) * kBand));
          if (shift && adapted[row0 + i]) {
            v[part] = add(v[part], load(shift + static_cast<size_t>(row0 + i) * shift_ld + (band + b + part) * kBand));
          }
        }
        const Vec first = gated(v[0], v[2], kind), second = gated(v[1], v[3], kind);
        if (packed) packed->put(row0 + i, group, first, second);
        if (y) {
          float* to = y + static_cast<size_t>(row0 + i) * ld + group * kGroup;
          store(to, first);
          store(to + 16, second);
        }
      }
    }
  }
};

// Bands multiplied before moving to the next rows: a tile of activations is read once for all of them.
constexpr int kBandsAtOnce = 4;
template <Format F, int Parts, int M, class Sink>
static inline void some_rows(const Matrix& m, int band, int bands, const Rows& x, int row0, const Sink& sink) {
  alignas(64) float product[kBandsAtOnce][M * 16];
  for (int b = 0; b < bands; ++b) dot_band<F, Parts, M>(m, band + b, x, row0, product[b]);
  sink(band, bands, row0, M, product[0], M * 16);
}

// Rows [row, end) times a few bands. A register tile of rows lies within sixteen rows.
template <Format F, int Parts, class Sink>
static void unit_rows(const Matrix& m, int band, int bands, const Rows& x, int row, int end, const Sink& sink) {
  while (row < end) {
    const int tile_end = row / 16 * 16 + 16, count = (end < tile_end ? end : tile_end) - row;
    if (kMaxRows > 4 && count >= kMaxRows) {
      some_rows<F, Parts, kMaxRows>(m, band, bands, x, row, sink);
      row += kMaxRows;
    } else if (count >= 4) {
      some_rows<F, Parts, 4>(m, band, bands, x, row, sink);
      row += 4;
    } else {
      if (count == 1) some_rows<F, Parts, 1>(m, band, bands, x, row, sink);
      if (count == 2) some_rows<F, Parts, 2>(m, band, bands, x, row, sink);
      if (count == 3) some_rows<F, Parts, 3>(m, band, bands, x, row, sink);
      row += count;
    }
  }
}

// This thread's share of the bands; sinks take some only together.
template <class Sink>
static Range share_bands(const Matrix& m, const Team& team) {
  constexpr int unit = Sink::kUnit;
  const Range units = team.share((m.bands() + unit - 1) / unit);
  return {units.begin * unit, units.end * unit < m.bands() ? units.end * unit : m.bands()};
}

// Integer rows: narrow ones, and wide ones where there is no matrix unit.
template <Format F, class Sink>
static void integers(const Matrix& m, const Activations& x, int count, const Sink& sink, const Team& team) {
  const Range share = share_bands<Sink>(m, team);
  const int narrow = count - x.wide_rows(count);
  for (int band = share.begin; band < share.end; band += kBandsAtOnce) {
    const int bands = share.end - band < kBandsAtOnce ? share.end - band : kBandsAtOnce;
    unit_rows<F, 2>(m, band, bands, x.rows, 0, narrow, sink);
    if (x.wide == nullptr) unit_rows<F, 1>(m, band, bands, x.rows, narrow, count, sink);
  }
}

// Rows of a register tile of floats, next to one band; a single row takes four bands, to hide latency.
constexpr int kFloatRows = 5;

template <Format F, class Sink>
static void unit_floats(const Matrix& m, int band, int bands, const float* x, int ld, int count, const Sink& sink) {
  alignas(64) float product[kBandsAtOnce][kFloatRows * 16];
  int row = 0;
  for (; row + kFloatRows <= count; row += kFloatRows) {
    const float* from = x + static_cast<size_t>(row) * ld;
    for (int b = 0; b < bands; ++b) dot_float<F, kFloatRows, 1>(m, band + b, from, ld, product[b], 0);
    sink(band, bands, row, kFloatRows, product[0], kFloatRows * 16);
  }
  for (; row < count; ++row) {
    const float* from = x + static_cast<size_t>(row) * ld;
    if (bands == kBandsAtOnce) {
      dot_float<F, 1, kBandsAtOnce>(m, band, from, ld, product[0], kFloatRows * 16);
    } else {
      for (int b = 0; b < bands; ++b) dot_float<F, 1, 1>(m, band + b, from, ld, product[b], 0);
    }
    sink(band, bands, row, 1, product[0], kFloatRows * 16);
  }
}

template <Format F, class Sink>
static void floating(const Matrix& m, const float* x, int ld, int count, const Sink& sink, const Team& team) {
  const Range share = share_bands<Sink>(m, team);
  for (int band = share.begin; band < share.end; band += kBandsAtOnce) {
    unit_floats<F>(m, band, share.end - band < kBandsAtOnce ? share.end - band : kBandsAtOnce, x, ld, count, sink);
  }
}

// What a matrix is multiplied with: packed rows, or floats where its weights are floats (bf16 weights: narrow rows only).
struct Input {
  const Activations* packed;
  const float* x;
  int ld;
};

// Bytes that unpacked weights with up to `groups` groups of columns and their products take, per thread.
static inline size_t room_for(int groups) {
#ifdef __AMX_BF16__
  // The largest of many rows is that of the widest matrix that is not cut.
  const size_t few = WideBlock(WideBlock::kFewRows, groups).bytes();
  const size_t many = WideBlock(WideBlock::kRows, WideBlock::kWhole).bytes();
  return few > many ? few : many;
#else
  (void)groups;
  return 0;
#endif
}

// The wide rows of `count` on the matrix unit.
template <Format F, class Sink>
static void tiles(const Matrix& m, const Activations& x, int count, uint8_t* room, const Sink& sink, const Team& team) {
#ifdef __AMX_BF16__
  if (x.wide == nullptr || x.wide_rows(count) == 0) return;
  const Range share = share_bands<Sink>(m, team);
  configure_tiles();
  const WideBlock block(x.wide_rows(count), m.groups);
  for (int band = share.begin; band < share.end; band += block.bands) {
    const int bands = share.end - band < block.bands ? share.end - band : block.bands;
    wide_unit<F>(m, band, bands, x, x.wide_rows(count), block, room, sink);
  }
  _tile_release();
#else
  (void)m, (void)x, (void)count, (void)room, (void)sink, (void)team;
#endif
}

template <Format F, class Sink>
static void packed(const Matrix& m, const Activations& x, int count, uint8_t* room, const Sink& sink, const Team& team) {
  if (x.wide == nullptr || x.wide_rows(count) < count) integers<F>(m, x, count, sink, team);
  tiles<F>(m, x, count, room, sink, team);
}

// sink(product of `count` rows with m), this thread's share of the bands. `room` has room_for(m.groups) bytes.
template <class Sink>
static void multiply(const Matrix& m, const Input& in, int count, uint8_t* room, const Sink& sink, const Team& team) {
  switch (m.format) {
    case Format::kInt8:
      return packed<Format::kInt8>(m, *in.packed, count, room, sink, team);
    case Format::kInt8Channel:
      return packed<Format::kInt8Channel>(m, *in.packed, count, room, sink, team);
    case Format::kInt4:
      return packed<Format::kInt4>(m, *in.packed, count, room, sink, team);
    case Format::kQ4K:
      return packed<Format::kQ4K>(m, *in.packed, count, room, sink, team);
    case Format::kQ6K:
      return packed<Format::kQ6K>(m, *in.packed, count, room, sink, team);
    case Format::kFp16:
      return floating<Format::kFp16>(m, in.x, in.ld, count, sink, team);
    case Format::kBf16:
      floating<Format::kBf16>(m, in.x, in.ld, in.packed->wide ? count - in.packed->wide_rows(count) : count, sink, team);
      return tiles<Format::kBf16>(m, *in.packed, count, room, sink, team);
  }
}

}  // namespace DS_ISA
}  // namespace deepseek

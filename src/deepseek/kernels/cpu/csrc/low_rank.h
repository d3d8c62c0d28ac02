// The two products of a low-rank update, for rows of several adapters in one step (segmented gather, as in Punica: Chen et
// al. 2023, arXiv:2310.18547, and S-LoRA: Sheng et al. 2023, arXiv:2311.03285).
//
// Sums run in one order whatever the number of rows: a row's update depends on nothing around it.
#pragma once
#include <type_traits>

#include "model.h"
#include "vec.h"

namespace deepseek {
namespace DS_ISA {

#ifdef __AVX512F__
constexpr int kLowRankRows = 8;  // of a register tile
#else
constexpr int kLowRankRows = 2;
#endif

// h[i][0 .. 16) = scale * sixteen rows of A times x[i], for R rows. Even and odd columns are summed apart.
template <int R>
static inline void shrink_tile(const uint16_t* a, int cols, const float* x, int ldx, float scale, float* h, int ldh) {
  Vec even[R], odd[R];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) even[i] = odd[i] = zero();
  for (int k = 0; k < cols; k += 2) {
    const Vec first = load_fp16(a + k * 16), second = load_fp16(a + k * 16 + 16);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const float* at = x + static_cast<size_t>(i) * ldx + k;
      even[i] = fma(first, set1(at[0]), even[i]);
      odd[i] = fma(second, set1(at[1]), odd[i]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) store(h + static_cast<size_t>(i) * ldh, mul(add(even[i], odd[i]), set1(scale)));
}

// y[i][0 .. 16) += a band of B times h[i], for R rows.
template <int R>
static inline void expand_tile(const uint16_t* b, int rank, const float* h, int ldh, float* y, int ldy) {
  Vec sum[R];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) sum[i] = zero();
  for (int k = 0; k < rank; ++k) {
    const Vec weights = load_fp16(b + k * 16);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) sum[i] = fma(weights, set1(h[static_cast<size_t>(i) * ldh + k]), sum[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
    float* to = y + static_cast<size_t>(i) * ldy;
    store(to, add(load(to), sum[i]));
  }
}

// Calls tile(std::integral_constant of the number of rows, first row) for rows [begin, end).
template <class Tile>
static inline void by_tiles(int begin, int end, const Tile& tile) {
  int row = begin;
  for (; row + kLowRankRows <= end; row += kLowRankRows) tile(std::integral_constant<int, kLowRankRows>{}, row);
  if constexpr (kLowRankRows > 4) {
    for (; row + 4 <= end; row += 4) tile(std::integral_constant<int, 4>{}, row);
    for (; row + 2 <= end; row += 2) tile(std::integral_constant<int, 2>{}, row);
  }
  for (; row < end; ++row) tile(std::integral_constant<int, 1>{}, row);
}

// Sixteen ranks of an update, of rows [begin, end): what one thread computes at a time.
static inline void shrink(const LowRank& update, int band, int begin, int end, const float* x, int ldx, float* h, int ldh) {
  float scale = 0;
  for (int t = 0; t < update.count; ++t) {
    if (band * 16 >= update.targets[t].first_rank) scale = update.targets[t].scale;
  }
  const uint16_t* a = update.a + static_cast<size_t>(band) * update.cols * 16;
  by_tiles(begin, end, [&](auto rows, int row) {
    shrink_tile<decltype(rows)::value>(a, update.cols, x + static_cast<size_t>(row) * ldx, ldx, scale,
                                       h + static_cast<size_t>(row) * ldh + band * 16, ldh);
  });
}

// The output bands [first, last) of an update, of rows [begin, end). `y` begins at band 0.
static inline void expand(const LowRank& update, int first, int last, int begin, int end, const float* h, int ldh, float* y,
                          int ldy) {
  for (int t = 0; t < update.count; ++t) {
    const LowRank::Target& target = update.targets[t];
    for (int band = first; band < last; ++band) {
      const int own = target.own_band(band);
      if (own < 0) continue;
      const uint16_t* b = target.b + static_cast<size_t>(own) * target.rank * 16;
      by_tiles(begin, end, [&](auto rows, int row) {
        expand_tile<decltype(rows)::value>(b, target.rank, h + static_cast<size_t>(row) * ldh + target.first_rank, ldh,
                                           y + static_cast<size_t>(row) * ldy + band * 16, ldy);
      });
    }
  }
}

}  // namespace DS_ISA
}  // namespace deepseek

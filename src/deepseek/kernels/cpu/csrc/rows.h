// Rows of activations as the matrix kernels read them. Narrow rows are integers of 16 bits: their rounding is far below
// that of any weights. Wide rows are for many rows at once: bf16 for the matrix unit, and 8-bit integers without one.
#pragma once
#include "formats.h"
#include "vec.h"

namespace deepseek {
namespace DS_ISA {

// Integer rows, one scale per 32 columns. Per-group facts are stored for sixteen rows together, [row / 16][group][row % 16].
struct Rows {
  int8_t* high;  // [rows padded to 16][ld]
  int8_t* low;   // likewise; not used by rows of 8 bits
  int ld;        // columns padded to whole groups
  int groups;
  float* scale;     // value = scale * q, with q = 256 * high + low, or high alone
  float* sum;       // scale * sum of q: what a minimum of the weights is multiplied with
  int32_t* zero128;  // -128 * sum of q: corrects for weights taken as unsigned
  int32_t* zero32;   // [row / 16][2 * group][row % 16], -32 * sum of q over half a group: likewise for 6-bit weights

  size_t at(int row, int group) const { return (static_cast<size_t>(row / 16) * groups + group) * 16 + row % 16; }
  size_t half_at(int row, int half) const { return (static_cast<size_t>(row / 16) * groups * 2 + half) * 16 + row % 16; }
};

static inline int32_t sum_int8(const int8_t* q) {  // of 16
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
  const __m128i biased = _mm_sad_epu8(_mm_xor_si128(bytes, _mm_set1_epi8(-128)), _mm_setzero_si128());
  return _mm_cvtsi128_si32(biased) + _mm_extract_epi32(biased, 2) - 16 * 128;
}

// One group of a row: symmetric, the largest magnitude becomes 127, or 127 * 256 in two parts. The low part keeps out of
// -128, whose sign AVX2's products cannot turn. NaN and infinity become the group's scale, so that they reach every
// result of this row and of no other.
template <int Parts>
static inline void quantize_group(const Rows& rows, int row, int group, Vec a, Vec b) {
  constexpr float kLargest = Parts == 2 ? 127.0f * 256.0f : 127.0f;
  const float largest = reduce_max_magnitude(max_magnitude(a, b));
  const float scale = largest * (1.0f / kLargest);
  const Vec inverse = set1(largest > 0.0f ? kLargest / largest : 0.0f);
  const size_t start = static_cast<size_t>(row) * rows.ld + group * kGroup;
  int32_t sums[2];
  for (int half = 0; half < 2; ++half) {
    const Vec q = round(mul(half ? b : a, inverse));
    int8_t* high = rows.high + start + half * 16;
    if constexpr (Parts == 2) {
      const Vec top = round(mul(q, set1(1.0f / 256.0f)));
      int8_t* low = rows.low + start + half * 16;
      store_int8(high, top);
      store_int8(low, max(fnma(top, set1(256.0f), q), set1(-127.0f)));
      sums[half] = 256 * sum_int8(high) + sum_int8(low);
    } else {
      store_int8(high, q);
      sums[half] = sum_int8(high);
    }
  }
  const size_t i = rows.at(row, group), h = rows.half_at(row, 2 * group);
  rows.scale[i] = scale;
  rows.sum[i] = scale * static_cast<float>(sums[0] + sums[1]);
  rows.zero128[i] = -128 * (sums[0] + sums[1]);
  rows.zero32[h] = -32 * sums[0];
  rows.zero32[h + 16] = -32 * sums[1];
}

// A step's rows: the first `narrow` ones narrow, the others wide. Tiles of the matrix unit are [row / 16][group][row % 16][32].
struct Activations {
  Rows rows;
  uint16_t* wide;
  int narrow;

  int wide_rows(int count) const { return count > narrow ? count - narrow : 0; }
  const uint16_t* wide_tile(int tile) const { return wide + static_cast<size_t>(tile) * rows.groups * 512; }

  void put(int row, int group, Vec a, Vec b) const {
    if (row < narrow) {
      quantize_group<2>(rows, row, group, a, b);
      return;
    }
#ifdef __AMX_BF16__
    if (wide) {
      const int i = row - narrow;
      store_bf16(wide + (static_cast<size_t>(i / 16) * rows.groups + group) * 512 + i % 16 * 32, a, b);
      return;
    }
#endif
    quantize_group<1>(rows, row, group, a, b);
  }

  // `x` has ld columns, zero beyond the real ones.
  void put_row(int row, const float* x) const {
    for (int g = 0; g < rows.groups; ++g) put(row, g, load(x + g * kGroup), load(x + g * kGroup + 16));
  }
};

}  // namespace DS_ISA
}  // namespace deepseek

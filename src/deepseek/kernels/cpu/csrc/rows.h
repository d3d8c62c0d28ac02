// Rows of activations as the matrix kernels read them: quantized to int8, one scale per 32 columns ("narrow" rows), or, for
// the matrix unit, rounded to bf16 ("wide" rows).
#pragma once
#include "formats.h"
#include "vec.h"

namespace deepseek {
namespace DS_ISA {

// Per-group facts are stored for sixteen rows together, [row / 16][group][row % 16], as a tile of rows needs them.
struct Rows {
  int8_t* q;  // [rows padded to 16][ld]
  int ld;     // columns padded to whole groups
  int groups;
  float* scale;     // value = scale * q
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

// One group of a row: symmetric, scale = largest magnitude / 127. NaN and infinity become the group's scale, so that
// they reach every result of this row and of no other.
static inline void quantize_group(const Rows& rows, int row, int group, Vec a, Vec b) {
  const float largest = reduce_max_magnitude(max_magnitude(a, b));
  const float scale = largest * (1.0f / 127.0f);
  const Vec inverse = set1(largest > 0.0f ? 127.0f / largest : 0.0f);
  int8_t* q = rows.q + static_cast<size_t>(row) * rows.ld + group * kGroup;
  store_int8(q, mul(a, inverse));
  store_int8(q + 16, mul(b, inverse));
  const int32_t first = sum_int8(q), second = sum_int8(q + 16);
  const size_t i = rows.at(row, group), h = rows.half_at(row, 2 * group);
  rows.scale[i] = scale;
  rows.sum[i] = scale * static_cast<float>(first + second);
  rows.zero128[i] = -128 * (first + second);
  rows.zero32[h] = -32 * first;
  rows.zero32[h + 16] = -32 * second;
}

// A step's rows: the first `narrow` in int8, the others in bf16 as tiles of the matrix unit, [row / 16][group][row % 16][32].
struct Activations {
  Rows rows;
  uint16_t* wide;
  int narrow;

  int wide_rows(int count) const { return count > narrow ? count - narrow : 0; }
  const uint16_t* wide_tile(int tile) const { return wide + static_cast<size_t>(tile) * rows.groups * 512; }

  void put(int row, int group, Vec a, Vec b) const {
#ifdef __AMX_BF16__
    if (row >= narrow) {
      const int i = row - narrow;
      store_bf16(wide + (static_cast<size_t>(i / 16) * rows.groups + group) * 512 + i % 16 * 32, a, b);
      return;
    }
#endif
    quantize_group(rows, row, group, a, b);
  }

  // `x` has ld columns, zero beyond the real ones.
  void put_row(int row, const float* x) const {
    for (int g = 0; g < rows.groups; ++g) put(row, g, load(x + g * kGroup), load(x + g * kGroup + 16));
  }
};

}  // namespace DS_ISA
}  // namespace deepseek

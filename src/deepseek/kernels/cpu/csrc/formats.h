// Weight matrices as the kernels read them.
//
// Sixteen output rows make a band, which lies together: first all of its quants, then its scales. Columns come in groups
// of 32 of which four consecutive ones ("quad") of all sixteen rows fill 64 bytes: [quad][row][4].
//
//   int8          quants int8 [group][8 quads][64]; scales fp16 [group][16]                      8.5  bits per weight
//   int8_channel  quants int8 [group][8 quads][64]; scales fp32 [16]                             8.0
//   int4          quants [group][4][64]: quad j in the low, quad j + 4 in the high nibbles;
//                 fp16 scale and minimum [group][2][16]: value = scale * q - minimum             5.0
//   q4_k          quants as int4; per 8 groups the file's 6-bit scales and minima and their
//                 fp16 factors                                                                   4.5
//   q6_k          low nibbles as int4, then high bits [group][2][64]: bits 2j, 2j + 1 of part p
//                 belong to quad 4p + j; per 8 groups int8 scales [16][16], fp16 factor [16]     6.56
//   fp16          [column][16]                                                                  16
//   bf16          [column pair][16][2]                                                          16
//
// Rows are padded to whole bands and columns to whole groups with zeros.
#pragma once
#include <cstddef>
#include <cstdint>

namespace deepseek {

constexpr int kBand = 16;
constexpr int kGroup = 32;
constexpr int kSuper = 8;  // groups of a K-quant's superblock

enum class Format : int32_t { kInt8, kInt8Channel, kInt4, kQ4K, kQ6K, kFp16, kBf16 };

inline bool is_float(Format f) { return f == Format::kFp16 || f == Format::kBf16; }

// A matrix in memory of its own. Plain data, so that code compiled for any instruction set may read it.
struct Matrix {
  Format format;
  int rows;    // of the model; packed rows are a multiple of kBand
  int cols;    // of the model
  int groups;  // padded columns / kGroup
  size_t quant_bytes;  // of a band
  size_t band_bytes;
  uint8_t* data;  // 64-byte aligned

  int bands() const { return (rows + kBand - 1) / kBand; }
  int padded_cols() const { return groups * kGroup; }
  const uint8_t* quants(int band) const { return data + band * band_bytes; }
  const uint8_t* meta(int band) const { return data + band * band_bytes + quant_bytes; }
};

// Bytes of a band's quants and of its scales.
size_t band_quant_bytes(Format format, int groups);
size_t band_meta_bytes(Format format, int groups);

// Row `row` as floats; `out` has room for padded_cols().
void dequantize_row(const Matrix& matrix, int row, float* out);

// Where a source row goes: consecutively from `start`, or, for two matrices whose rows of 32 alternate (gate and up),
// every second 32 rows.
struct Placement {
  int start;
  bool alternate;
  int operator()(int row) const { return alternate ? row / 32 * 64 + start + row % 32 : start + row; }
};

// Fill rows of a zeroed matrix. Each returns the first source row with a scale or value that is NaN or infinite (nothing
// reads such a matrix), or -1.
int put_gguf(Matrix& matrix, const char* type, const uint8_t* data, int rows, size_t row_bytes, Placement place);
int put_int8(Matrix& matrix, const int8_t* q, const float* scale, int rows, int cols, int group, Placement place);
int put_int4(Matrix& matrix, const uint8_t* q, const float* scale, const float* minimum, int rows, int cols, int group,
             Placement place);
int put_float(Matrix& matrix, const float* values, int rows, int cols, Placement place);

// The format that holds a GGUF type's blocks exactly, or -1.
int format_of_gguf(const char* type);

}  // namespace deepseek

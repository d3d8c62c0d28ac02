#include "formats.h"

#include <immintrin.h>

#include <cmath>
#include <cstring>

namespace deepseek {
namespace {

float half_to_float(uint16_t h) { return _cvtsh_ss(h); }
uint16_t float_to_half(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }

uint16_t float_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

bool finite_half(uint16_t h) { return (h & 0x7c00) != 0x7c00; }

uint16_t read_u16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, 2);
  return value;
}

void write_u16(uint8_t* p, uint16_t value) { std::memcpy(p, &value, 2); }

// Addresses inside the band of one packed row.
struct Row {
  Matrix& m;
  uint8_t* quants;
  uint8_t* meta;
  int lane;

  Row(Matrix& matrix, int row)
      : m(matrix),
        quants(matrix.data + (row / kBand) * matrix.band_bytes),
        meta(quants + matrix.quant_bytes),
        lane(row % kBand) {}

  void int8(int g, const int8_t* q) {  // 32 columns
    for (int quad = 0; quad < 8; ++quad) std::memcpy(quants + g * 512 + quad * 64 + lane * 4, q + quad * 4, 4);
  }

  void nibbles(int g, const uint8_t* pairs) {  // pairs[k]: column k in the low, k + 16 in the high four bits
    for (int quad = 0; quad < 4; ++quad) std::memcpy(quants + g * 256 + quad * 64 + lane * 4, pairs + quad * 4, 4);
  }

  void high_bits(int g, const uint8_t* q) {  // bits 4 and 5 of 32 columns
    uint8_t* to = quants + m.groups * 256 + g * 128 + lane * 4;
    for (int k = 0; k < 32; ++k) to[k / 16 * 64 + k % 4] |= static_cast<uint8_t>(q[k] >> 4 << (2 * (k / 4 % 4)));
  }

  void int8_scale(int g, uint16_t scale) { write_u16(meta + g * 32 + lane * 2, scale); }
  void channel_scale(float scale) { std::memcpy(meta + lane * 4, &scale, 4); }
  void int4_scale(int g, uint16_t scale, uint16_t minimum) {
    write_u16(meta + g * 64 + lane * 2, scale);
    write_u16(meta + g * 64 + 32 + lane * 2, minimum);
  }

  // q4_k: which = 0 for scales, 1 for minima; 64 bytes of low nibbles, then 32 bytes of high bits.
  void six_bits(int super, int which, int g, int value) {
    uint8_t* part = meta + super * 256 + which * 96;
    part[g % 4 * 16 + lane] |= static_cast<uint8_t>((value & 15) << (g < 4 ? 0 : 4));
    part[64 + g % 2 * 16 + lane] |= static_cast<uint8_t>((value >> 4) << (g / 2 * 2));
  }
};

bool put_q8_0(Row row, const uint8_t* block, int blocks) {
  for (int g = 0; g < blocks; ++g, block += 34) {
    const uint16_t scale = read_u16(block);
    if (!finite_half(scale)) return false;
    row.int8_scale(g, scale);
    row.int8(g, reinterpret_cast<const int8_t*>(block + 2));
  }
  return true;
}

bool put_q5_0(Row row, const uint8_t* block, int blocks) {
  for (int g = 0; g < blocks; ++g, block += 22) {
    const uint16_t scale = read_u16(block);
    if (!finite_half(scale)) return false;
    row.int8_scale(g, scale);
    uint32_t high;
    std::memcpy(&high, block + 2, 4);
    int8_t q[32];
    for (int k = 0; k < 16; ++k) {
      q[k] = static_cast<int8_t>(((block[6 + k] & 15) | ((high >> k) & 1) << 4) - 16);
      q[k + 16] = static_cast<int8_t>((block[6 + k] >> 4 | ((high >> (k + 16)) & 1) << 4) - 16);
    }
    row.int8(g, q);
  }
  return true;
}

// q4_0: value = d * (q - 8); q4_1: value = d * q + m.
bool put_q4(Row row, const uint8_t* block, int blocks, bool has_minimum) {
  const int header = has_minimum ? 4 : 2;
  for (int g = 0; g < blocks; ++g, block += header + 16) {
    const uint16_t scale = read_u16(block);
    const uint16_t minimum =
        has_minimum ? read_u16(block + 2) ^ 0x8000 : float_to_half(8.0f * half_to_float(scale));
    if (!finite_half(scale) || !finite_half(minimum)) return false;
    row.int4_scale(g, scale, minimum);
    row.nibbles(g, block + header);
  }
  return true;
}

bool put_q4_k(Row row, const uint8_t* block, int blocks) {
  for (int s = 0; s < blocks; ++s, block += 144) {
    const uint16_t d = read_u16(block), dmin = read_u16(block + 2);
    if (!finite_half(d) || !finite_half(dmin)) return false;
    write_u16(row.meta + s * 256 + 192 + row.lane * 2, d);
    write_u16(row.meta + s * 256 + 224 + row.lane * 2, dmin);
    const uint8_t* packed = block + 4;
    for (int g = 0; g < 8; ++g) {
      int scale, minimum;
      if (g < 4) {
        scale = packed[g] & 63;
        minimum = packed[g + 4] & 63;
      } else {
        scale = (packed[g + 4] & 15) | ((packed[g - 4] >> 6) << 4);
        minimum = (packed[g + 4] >> 4) | ((packed[g] >> 6) << 4);
      }
      row.six_bits(s, 0, g, scale);
      row.six_bits(s, 1, g, minimum);
      const uint8_t* quants = block + 16 + g / 2 * 32;
      uint8_t pairs[16];
      for (int k = 0; k < 16; ++k) {
        pairs[k] = g % 2 ? (quants[k] >> 4) | (quants[k + 16] & 0xf0) : (quants[k] & 15) | (quants[k + 16] << 4);
      }
      row.nibbles(s * 8 + g, pairs);
    }
  }
  return true;
}

bool put_q6_k(Row row, const uint8_t* block, int blocks) {
  for (int s = 0; s < blocks; ++s, block += 210) {
    const uint8_t *low = block, *high = block + 128, *scales = block + 192;
    const uint16_t d = read_u16(block + 208);
    if (!finite_half(d)) return false;
    for (int i = 0; i < 16; ++i) row.meta[s * 288 + i * 16 + row.lane] = scales[i];
    write_u16(row.meta + s * 288 + 256 + row.lane * 2, d);
    for (int half = 0; half < 2; ++half, low += 64, high += 32) {
      for (int part = 0; part < 4; ++part) {
        uint8_t q[32], pairs[16];
        for (int k = 0; k < 32; ++k) {
          const uint8_t byte = low[k + part % 2 * 32];
          q[k] = (part < 2 ? byte & 15 : byte >> 4) | ((high[k] >> (2 * part)) & 3) << 4;
        }
        for (int k = 0; k < 16; ++k) pairs[k] = (q[k] & 15) | (q[k + 16] << 4);
        row.nibbles(s * 8 + half * 4 + part, pairs);
        row.high_bits(s * 8 + half * 4 + part, q);
      }
    }
  }
  return true;
}

float scale_int8(const Matrix& m, const uint8_t* meta, int g, int lane) {
  float scale;
  if (m.format == Format::kInt8Channel) {
    std::memcpy(&scale, meta + lane * 4, 4);
    return scale;
  }
  return half_to_float(read_u16(meta + g * 32 + lane * 2));
}

int six_bits(const uint8_t* part, int g, int lane) {
  const int low = (part[g % 4 * 16 + lane] >> (g < 4 ? 0 : 4)) & 15;
  return low | ((part[64 + g % 2 * 16 + lane] >> (g / 2 * 2)) & 3) << 4;
}

// Where a band keeps column k of a floating row.
size_t float_offset(Format format, int lane, int k) {
  return format == Format::kFp16 ? k * 32 + lane * 2 : k / 2 * 64 + lane * 4 + k % 2 * 2;
}

int nibble(const uint8_t* quants, int g, int lane, int k) {
  const uint8_t byte = quants[g * 256 + k / 4 % 4 * 64 + lane * 4 + k % 4];
  return k < 16 ? byte & 15 : byte >> 4;
}

}  // namespace

size_t band_quant_bytes(Format format, int groups) {
  const size_t g = groups;
  switch (format) {
    case Format::kInt8:
    case Format::kInt8Channel:
      return g * 512;
    case Format::kInt4:
    case Format::kQ4K:
      return g * 256;
    case Format::kQ6K:
      return g * 384;
    default:
      return g * kGroup * 32;
  }
}

size_t band_meta_bytes(Format format, int groups) {
  const size_t g = groups;
  switch (format) {
    case Format::kInt8:
      return g * 32;
    case Format::kInt8Channel:
      return 64;
    case Format::kInt4:
      return g * 64;
    case Format::kQ4K:
      return g / kSuper * 256;
    case Format::kQ6K:
      return g / kSuper * 288;
    default:
      return 0;
  }
}

void dequantize_row(const Matrix& m, int row, float* out) {
  const int band = row / kBand, lane = row % kBand;
  const uint8_t *quants = m.quants(band), *meta = m.meta(band);
  if (is_float(m.format)) {
    for (int k = 0; k < m.padded_cols(); ++k) {
      const uint16_t raw = read_u16(quants + float_offset(m.format, lane, k));
      const uint32_t wide = static_cast<uint32_t>(raw) << 16;
      if (m.format == Format::kFp16) {
        out[k] = half_to_float(raw);
      } else {
        std::memcpy(out + k, &wide, 4);
      }
    }
    return;
  }
  for (int g = 0; g < m.groups; ++g, out += kGroup) {
    switch (m.format) {
      case Format::kInt8:
      case Format::kInt8Channel: {
        const float scale = scale_int8(m, meta, g, lane);
        for (int k = 0; k < 32; ++k)
          out[k] = scale * static_cast<int8_t>(quants[g * 512 + k / 4 * 64 + lane * 4 + k % 4]);
        break;
      }
      case Format::kInt4: {
        const float scale = half_to_float(read_u16(meta + g * 64 + lane * 2));
        const float minimum = half_to_float(read_u16(meta + g * 64 + 32 + lane * 2));
        for (int k = 0; k < 32; ++k) out[k] = scale * nibble(quants, g, lane, k) - minimum;
        break;
      }
      case Format::kQ4K: {
        const uint8_t* super = meta + g / kSuper * 256;
        const float d = half_to_float(read_u16(super + 192 + lane * 2));
        const float dmin = half_to_float(read_u16(super + 224 + lane * 2));
        const float scale = d * six_bits(super, g % 8, lane), minimum = dmin * six_bits(super + 96, g % 8, lane);
        for (int k = 0; k < 32; ++k) out[k] = scale * nibble(quants, g, lane, k) - minimum;
        break;
      }
      default: {
        const uint8_t* super = meta + g / kSuper * 288;
        const float d = half_to_float(read_u16(super + 256 + lane * 2));
        for (int k = 0; k < 32; ++k) {
          const float scale = d * static_cast<int8_t>(super[(g % 8 * 2 + k / 16) * 16 + lane]);
          const uint8_t high = quants[m.groups * 256 + g * 128 + k / 16 * 64 + lane * 4 + k % 4];
          out[k] = scale * ((nibble(quants, g, lane, k) | ((high >> (k / 4 % 4 * 2)) & 3) << 4) - 32);
        }
      }
    }
  }
}

int format_of_gguf(const char* type) {
  static const struct {
    const char* type;
    Format format;
  } kTable[] = {{"Q8_0", Format::kInt8}, {"Q5_0", Format::kInt8}, {"Q4_0", Format::kInt4},
                {"Q4_1", Format::kInt4}, {"Q4_K", Format::kQ4K},  {"Q6_K", Format::kQ6K}};
  for (const auto& entry : kTable)
    if (std::strcmp(entry.type, type) == 0) return static_cast<int>(entry.format);
  return -1;
}

namespace {

// put(row) for all rows in parallel, a band's worth at a time; the first row for which it returns false, or -1.
template <class Put>
int for_rows(int rows, const Put& put) {
  int first = rows;
#pragma omp parallel for schedule(static) reduction(min : first)
  for (int start = 0; start < rows; start += kBand) {
    for (int r = start; r < rows && r < start + kBand; ++r) {
      if (!put(r) && r < first) first = r;
    }
  }
  return first < rows ? first : -1;
}

}  // namespace

int put_gguf(Matrix& m, const char* type, const uint8_t* data, int rows, size_t row_bytes, Placement place) {
  const int supers = m.groups / kSuper;
  const auto is = [&](const char* name) { return std::strcmp(type, name) == 0; };
  return for_rows(rows, [&](int r) {
    const Row row(m, place(r));
    const uint8_t* from = data + r * row_bytes;
    if (is("Q8_0")) return put_q8_0(row, from, m.groups);
    if (is("Q5_0")) return put_q5_0(row, from, m.groups);
    if (is("Q4_0")) return put_q4(row, from, m.groups, false);
    if (is("Q4_1")) return put_q4(row, from, m.groups, true);
    if (is("Q4_K")) return put_q4_k(row, from, supers);
    return put_q6_k(row, from, supers);
  });
}

int put_int8(Matrix& m, const int8_t* q, const float* scale, int rows, int cols, int group, Placement place) {
  const int scales = (cols + group - 1) / group;
  return for_rows(rows, [&](int r) {
    Row row(m, place(r));
    const int8_t* from = q + static_cast<size_t>(r) * cols;
    const float* by = scale + static_cast<size_t>(r) * scales;
    for (int g = 0; g < m.groups; ++g) {
      int8_t padded[kGroup] = {};
      const int count = cols - g * kGroup < kGroup ? cols - g * kGroup : kGroup;
      std::memcpy(padded, from + g * kGroup, count > 0 ? count : 0);
      row.int8(g, padded);
    }
    if (m.format == Format::kInt8Channel) {
      row.channel_scale(by[0]);
      return std::isfinite(by[0]);
    }
    for (int g = 0; g * kGroup < cols; ++g) {
      const uint16_t half = float_to_half(by[g * kGroup / group]);
      if (!finite_half(half)) return false;
      row.int8_scale(g, half);
    }
    return true;
  });
}

int put_int4(Matrix& m, const uint8_t* q, const float* scale, const float* minimum, int rows, int cols, int group,
             Placement place) {
  const int scales = (cols + group - 1) / group;
  return for_rows(rows, [&](int r) {
    Row row(m, place(r));
    const uint8_t* from = q + static_cast<size_t>(r) * cols;
    for (int g = 0; g * kGroup < cols; ++g) {
      const auto at = [&](int k) { return g * kGroup + k < cols ? from[g * kGroup + k] & 15 : 0; };
      uint8_t pairs[16];
      for (int k = 0; k < 16; ++k) pairs[k] = static_cast<uint8_t>(at(k) | at(k + 16) << 4);
      row.nibbles(g, pairs);
      const size_t s = static_cast<size_t>(r) * scales + g * kGroup / group;
      const uint16_t half = float_to_half(scale[s]), least = minimum ? float_to_half(minimum[s]) : 0;
      if (!finite_half(half) || !finite_half(least)) return false;
      row.int4_scale(g, half, least);
    }
    return true;
  });
}

int put_float(Matrix& m, const float* values, int rows, int cols, Placement place) {
  return for_rows(rows, [&](int r) {
    const int target = place(r);
    const float* from = values + static_cast<size_t>(r) * cols;
    uint8_t* out = m.data + (target / kBand) * m.band_bytes;
    for (int k = 0; k < cols; ++k) {
      const uint16_t raw = m.format == Format::kFp16 ? float_to_half(from[k]) : float_to_bf16(from[k]);
      if (m.format == Format::kFp16 ? !finite_half(raw) : (raw & 0x7f80) == 0x7f80) return false;
      write_u16(out + float_offset(m.format, target % kBand, k), raw);
    }
    return true;
  });
}

}  // namespace deepseek

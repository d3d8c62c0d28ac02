// The random rotation that sign codes are taken in, shared by all pages and queries.
//
// Random signs, then a fast Walsh-Hadamard transform, scaled to keep lengths. A dimension that is no power of two is turned
// twice, its first and its last 2^k elements.
#pragma once
#include <cmath>
#include <cstdint>
#include <initializer_list>

namespace deepseek {
namespace DS_ISA {

constexpr int kMaxRotated = 1024;

struct RotationSigns {
  float first[kMaxRotated], second[kMaxRotated];

  RotationSigns() {
    uint64_t state = 0x5eed;
    for (float* signs : {first, second}) {
      for (int i = 0; i < kMaxRotated; ++i) signs[i] = next(state) >> 63 ? -1.0f : 1.0f;
    }
  }
  // SplitMix64 (Steele, Lea and Flood 2014).
  static uint64_t next(uint64_t& state) {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
};

static inline const RotationSigns& rotation_signs() {
  static const RotationSigns signs;
  return signs;
}

static inline void hadamard(float* x, int size) {
  for (int half = 1; half < size; half *= 2) {
    for (int i = 0; i < size; i += 2 * half) {
      for (int j = i; j < i + half; ++j) {
        const float a = x[j], b = x[j + half];
        x[j] = a + b;
        x[j + half] = a - b;
      }
    }
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  for (int i = 0; i < size; ++i) x[i] *= scale;
}

// In place.
static inline void rotate_randomly(float* x, int dim) {
  const RotationSigns& signs = rotation_signs();
  int size = 16;
  while (2 * size <= dim) size *= 2;
  for (int i = 0; i < dim; ++i) x[i] *= signs.first[i];
  hadamard(x, size);
  if (size == dim) return;
  for (int i = 0; i < dim; ++i) x[i] *= signs.second[i];
  hadamard(x + dim - size, size);
}

}  // namespace DS_ISA
}  // namespace deepseek

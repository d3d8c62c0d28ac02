// Root-mean-square norm (Zhang & Sennrich 2019), alone or into rows for the matrix kernels.
#pragma once
#include <cmath>

#include "rows.h"

namespace deepseek {
namespace DS_ISA {

// 1 / rms of a row; `x` has `ld` columns, zero beyond `dim`.
static inline float inverse_rms(const float* x, int dim, int ld, float eps) {
  Vec sum = zero();
  for (int k = 0; k < ld; k += kLanes) sum = fma(load(x + k), load(x + k), sum);
  return 1.0f / std::sqrt(reduce_add(sum) / static_cast<float>(dim) + eps);
}

// Where a normalised row goes: to what the kernels multiply, as floats, or both.
struct NormOutput {
  const Activations* packed;  // or null
  float* y;          // or null
  int ld;
};

// out[row] = x * inverse rms * weight, in steps of 32 columns; `weight` is zero beyond the real columns.
static inline void norm_row(const float* x, const float* weight, int dim, int ld, float eps, int row,
                            const NormOutput& out) {
  const Vec by = set1(inverse_rms(x, dim, ld, eps));
  for (int k = 0; k < ld; k += kGroup) {
    const Vec a = mul(mul(load(x + k), by), load(weight + k));
    const Vec b = mul(mul(load(x + k + 16), by), load(weight + k + 16));
    if (out.packed) out.packed->put(row, k / kGroup, a, b);
    if (out.y) {
      float* to = out.y + static_cast<size_t>(row) * out.ld + k;
      store(to, a);
      store(to + 16, b);
    }
  }
}

}  // namespace DS_ISA
}  // namespace deepseek

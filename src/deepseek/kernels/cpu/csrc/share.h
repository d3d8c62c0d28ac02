// Products with several matrices in one phase of a step: threads share all of them together, not one after another.
#pragma once
#include "linear.h"

namespace deepseek {
namespace DS_ISA {

// Bands [first, first + count) as a matrix.
static inline Matrix slice(const Matrix& m, int first, int count) {
  Matrix part = m;
  part.data += first * m.band_bytes;
  part.rows = count * kBand;
  return part;
}

// A pretended team, for a product that one thread computes.
static inline Team alone() { return {0, 1, nullptr}; }

// Bands that are not cut apart: they make whole groups of a gated result.
constexpr int kSliceBands = 4;

// Calls visit(i, first band, bands) for this thread's part of `count` matrices with bands(i) bands each, of which one
// costs cost(i). Threads get contiguous parts of about the same cost.
template <class Bands, class Cost, class Visit>
static inline void share_matrices(int count, const Team& team, const Bands& bands, const Cost& cost, const Visit& visit) {
  int64_t total = 0;
  for (int i = 0; i < count; ++i) total += (bands(i) + kSliceBands - 1) / kSliceBands * static_cast<int64_t>(cost(i));
  const int64_t begin = total * team.rank / team.size, end = total * (team.rank + 1) / team.size;
  int64_t at = 0;
  for (int i = 0; i < count; ++i) {
    const int64_t each = cost(i), units = (bands(i) + kSliceBands - 1) / kSliceBands;
    if (units == 0 || each == 0) continue;
    // A unit belongs to the thread in whose part it begins.
    auto first_from = [&](int64_t point) {
      const int64_t unit = point <= at ? 0 : (point - at + each - 1) / each;
      return static_cast<int>(unit < units ? unit : units);
    };
    const int first = first_from(begin) * kSliceBands, last = first_from(end) * kSliceBands;
    if (first < last) visit(i, first, (last < bands(i) ? last : bands(i)) - first);
    at += each * units;
  }
}

}  // namespace DS_ISA
}  // namespace deepseek

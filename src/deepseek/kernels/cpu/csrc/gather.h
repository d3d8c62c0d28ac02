// Exact attention to single tokens, wherever they lie.
#pragma once
#include "attention_products.h"

namespace deepseek {
namespace DS_ISA {

// sums[r][d] += over tokens in order: weights[r][t] * values[t][d], R rows and V registers of dimensions.
template <int R, int V, class T>
static inline void gather_tile(const float* weights, int ldw, const T* const* values, int tokens, int d, float* sums, int ld) {
  Vec sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = load(sums + r * ld + d + v * kLanes);
  }
  for (int t = 0; t < tokens; ++t) {
    Vec x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = load_any(values[t] + d + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec w = set1(weights[r * ldw + t]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = fma(w, x[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(sums + r * ld + d + v * kLanes, sum[r][v]);
  }
}

template <int R, class T>
__attribute__((noinline)) static void gather_block(const float* weights, int ldw, const T* const* values, int tokens, int dim,
                                                   float* sums, int ld) {
  constexpr int V = block_width<R>;
  int d = 0;
  for (; d + V * kLanes <= dim; d += V * kLanes) gather_tile<R, V>(weights, ldw, values, tokens, d, sums, ld);
  for (; d < dim; d += kLanes) gather_tile<R, 1>(weights, ldw, values, tokens, d, sums, ld);
}

// Any number of rows.
template <int R = kBlockRows, class T>
static inline void gather_values(int rows, const float* weights, int ldw, const T* const* values, int tokens, int dim, float* sums,
                                 int ld) {
  for (; rows >= R; rows -= R, weights += R * ldw, sums += R * ld) gather_block<R>(weights, ldw, values, tokens, dim, sums, ld);
  if constexpr (R > 1) {
    if (rows > 0) gather_values<R - 1>(rows, weights, ldw, values, tokens, dim, sums, ld);
  }
}

// scores[r][t] of up to 64 tokens (a multiple of 16) for any number of rows; `room` holds 64 keys.
template <int kStride, class T>
static inline void gather_scores(int rows, const float* queries, const T* const* keys, int tokens, int dim, float* room, float* scores) {
  for (int t = 0; t < tokens; t += kLanes) {
    for (int d = 0; d < dim; d += kLanes) {
      Vec v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) v[i] = load_any(keys[t + i] + d);
      transpose(v);
      float* to = room + (static_cast<int64_t>(t) * dim + d * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) store(to + i * kLanes, v[i]);
    }
  }
  for (int r = 0; r < rows; r += kBlockRows) {
    score_rows<kStride>(rows - r < kBlockRows ? rows - r : kBlockRows, queries + r * kStride, room, dim, nullptr,
                        scores + r * kScoreStride, 0, tokens / kLanes);
  }
}

}  // namespace DS_ISA
}  // namespace deepseek

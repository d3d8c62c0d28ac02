// The two matrix products of attention for a few query rows and one page: scores, and sums of values.
//
// Blocks of rows differ in their registers only: each element is a sum of one order, by the same operations.
#pragma once
#include "attention_api.h"
#include "transpose.h"

namespace deepseek {
namespace DS_ISA {

#ifdef __AVX512F__
constexpr int kBlockRows = 12;  // 12 x 2 registers of sums
template <int R>
constexpr int block_width = R <= 3 ? 4 : 2;
#else
constexpr int kBlockRows = 6;  // 6 x 2 registers (one Vec is two)
template <int R>
constexpr int block_width = R > 3 ? 1 : (R > 1 ? 2 : 4);
#endif

// Asks for the next page while this one is worked on. Pages that have been widened to floats are at hand.
template <int V, class T>
static inline void prefetch(const T* p) {
  if constexpr (sizeof(T) < 4) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
    if constexpr (V * kLanes * sizeof(T) > 64) _mm_prefetch(reinterpret_cast<const char*>(p) + 64, _MM_HINT_T0);
  }
}

// scores[r][16 v + lane] = sum over d of q[r][d] * keys[v][d][lane], times the tokens' scales if there are any.
template <int R, int V, int kStride>
static inline void score_tile(const float* q, const float* keys, int dim, const float* scales, float* scores) {
  const int64_t block = static_cast<int64_t>(dim) * kLanes;
  Vec sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = zero();
  }
  for (int d = 0; d < dim; ++d, keys += kLanes) {
    Vec k[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) k[v] = load(keys + v * block);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec x = set1(q[r * kStride + d]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = fma(x, k[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      if (scales != nullptr) sum[r][v] = mul(sum[r][v], load(scales + v * kLanes));
      store(scores + r * kScoreStride + v * kLanes, sum[r][v]);
    }
  }
}

// Vectors [first, last) of one page for the block's rows.
template <int R, int kStride>
__attribute__((noinline)) static void score_block(const float* q, const float* keys, int dim, const float* scales,
                                                  float* scores, int first, int last) {
  constexpr int V = block_width<R>;
  const int64_t block = static_cast<int64_t>(dim) * kLanes;
  int v = first;
  for (; v + V <= last; v += V) {
    const float* own = scales != nullptr ? scales + v * kLanes : nullptr;
    score_tile<R, V, kStride>(q, keys + v * block, dim, own, scores + v * kLanes);
  }
  for (; v < last; ++v) {
    const float* own = scales != nullptr ? scales + v * kLanes : nullptr;
    score_tile<R, 1, kStride>(q, keys + v * block, dim, own, scores + v * kLanes);
  }
}

// sums[r][16 v + lane] += over tokens in order: weights[r][t] * values[t][16 v + lane].
template <int R, int V, int kStride, class T>
static inline void value_tile(const float* weights, const T* values, int64_t ahead, int ld, int tokens, float* sums) {
  Vec sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = load(sums + r * kStride + v * kLanes);
  }
  for (int t = 0; t < tokens; ++t, values += ld) {
    Vec x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = load_any(values + v * kLanes);
    prefetch<V>(values + ahead);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec w = set1(weights[r * kScoreStride + t]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = fma(w, x[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(sums + r * kStride + v * kLanes, sum[r][v]);
  }
}

template <int R, int kStride, class T>
__attribute__((noinline)) static void value_block(const float* weights, const T* values, int64_t ahead, int dim,
                                                  int first, int last, float* sums) {
  constexpr int V = block_width<R>;
  const T* at = values + static_cast<size_t>(first) * dim;
  int d = 0;
  for (; d + V * kLanes <= dim; d += V * kLanes) {
    value_tile<R, V, kStride>(weights + first, at + d, ahead, dim, last - first, sums + d);
  }
  for (; d < dim; d += kLanes) value_tile<R, 1, kStride>(weights + first, at + d, ahead, dim, last - first, sums + d);
}

template <int kStride, int R = kBlockRows>
static inline void score_rows(int rows, const float* q, const float* keys, int dim, const float* scales, float* scores,
                              int first, int last) {
  if constexpr (R > 1) {
    if (rows < R) return score_rows<kStride, R - 1>(rows, q, keys, dim, scales, scores, first, last);
  }
  score_block<R, kStride>(q, keys, dim, scales, scores, first, last);
}

template <int kStride, int R = kBlockRows, class T>
static inline void value_rows(int rows, const float* weights, const T* values, int64_t ahead, int dim, int first,
                              int last, float* sums) {
  if constexpr (R > 1) {
    if (rows < R) return value_rows<kStride, R - 1>(rows, weights, values, ahead, dim, first, last, sums);
  }
  value_block<R, kStride>(weights, values, ahead, dim, first, last, sums);
}

}  // namespace DS_ISA
}  // namespace deepseek

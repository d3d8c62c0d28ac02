// Mixture of experts, first half: which experts compute a row. As deepseek.layers.moe.route.
#pragma once
#include <cmath>

#include "model.h"
#include "team.h"
#include "vec.h"
#include "workspace.h"

namespace deepseek {
namespace DS_ISA {

#ifdef __AVX512F__
constexpr int kRouterRows = 4;
#else
constexpr int kRouterRows = 1;
#endif

// logits[i][j] of N rows and four experts: fp32, sixteen partial sums along the columns.
template <int N>
static inline void router_block(const float* x, int ldx, const float* w, int ldw, float* logits, int ld) {
  Vec acc[N][kRouterExperts];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kRouterExperts; ++j) acc[i][j] = zero();
  for (int k = 0; k < ldw; k += kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < kRouterExperts; ++j) {
      const Vec weight = load(w + static_cast<size_t>(j) * ldw + k);
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) acc[i][j] = fma(load(x + static_cast<size_t>(i) * ldx + k), weight, acc[i][j]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kRouterExperts; ++j) logits[static_cast<size_t>(i) * ld + j] = reduce_add(acc[i][j]);
}

// This thread's share of the router's product. `x` has rows of `ld` columns, zero beyond the real ones.
static inline void router_logits(const Experts& e, const ExpertMemory& m, const float* x, int ld, int rows,
                                 const Team& team) {
  const int blocks = (e.routing.experts + kRouterExperts - 1) / kRouterExperts;
  const int tiles = (rows + kRouterRows - 1) / kRouterRows;
  const Range share = team.share(tiles * blocks);
  for (int i = share.begin; i < share.end; ++i) {
    const int block = i / tiles, first = i % tiles * kRouterRows;
    const float* w = e.router + static_cast<size_t>(block) * kRouterExperts * ld;
    float* logits = m.logits + block * kRouterExperts;
    const int end = first + kRouterRows < rows ? first + kRouterRows : rows;
    if (end - first == kRouterRows) {
      router_block<kRouterRows>(x + static_cast<size_t>(first) * ld, ld, w, ld,
                                logits + static_cast<size_t>(first) * m.logits_ld, m.logits_ld);
      continue;
    }
    for (int t = first; t < end; ++t) {
      router_block<1>(x + static_cast<size_t>(t) * ld, ld, w, ld, logits + static_cast<size_t>(t) * m.logits_ld,
                      m.logits_ld);
    }
  }
}

// Logits [padded to 16] -> softmax or sigmoid, in place. What lies beyond the experts is overwritten.
static inline void router_scores(float* x, const Routing& r) {
  const int padded = (r.experts + kLanes - 1) / kLanes * kLanes;
  for (int i = r.experts; i < padded; ++i) x[i] = -INFINITY;
  if (r.sigmoid) {
    const Vec one = set1(1.0f);
    for (int i = 0; i < padded; i += kLanes) store(x + i, div(one, add(one, exp(sub(zero(), load(x + i))))));
    return;
  }
  Vec top = set1(-INFINITY), sum = zero();
  for (int i = 0; i < padded; i += kLanes) top = max(load(x + i), top);
  const Vec shift = set1(reduce_max(top));
  for (int i = 0; i < padded; i += kLanes) {
    const Vec e = exp(sub(load(x + i), shift));
    store(x + i, e);
    sum = add(sum, e);
  }
  const Vec total = set1(reduce_add(sum));
  for (int i = 0; i < padded; i += kLanes) store(x + i, div(load(x + i), total));
}

// Indices of the `count` largest of n values, largest first, the lower index among equals; NaN counts as the largest
// only where it comes first. What was taken is marked.
template <class Value>
static inline void take_largest(int n, int count, const Value& value, bool* taken, int32_t* out) {
  for (int k = 0; k < count; ++k) {
    int best = -1;
    for (int i = 0; i < n; ++i) {
      if (!taken[i] && (best < 0 || value(i) > value(best))) best = i;
    }
    taken[best] = true;
    out[k] = best;
  }
}

// One row's logits -> its experts and their weights.
static inline void route_row(const Routing& r, const float* bias, float* logits, int32_t* ids, float* weights) {
  router_scores(logits, r);
  float choice[kMaxExperts];
  for (int i = 0; i < r.experts; ++i) choice[i] = bias ? logits[i] + bias[i] : logits[i];
  bool taken[kMaxExperts] = {};
  if (r.groups > 1) {
    const int each = r.experts / r.groups;
    float quality[kMaxExperts];
    for (int g = 0; g < r.groups; ++g) {
      float best = -INFINITY, second = -INFINITY;
      for (int i = g * each; i < (g + 1) * each; ++i) {
        second = choice[i] > best ? best : choice[i] > second ? choice[i] : second;
        best = choice[i] > best ? choice[i] : best;
      }
      quality[g] = r.best_two ? best + second : best;
    }
    bool allowed[kMaxExperts] = {};
    int32_t chosen[kMaxExperts];
    take_largest(r.groups, r.top_groups, [&](int g) { return quality[g]; }, allowed, chosen);
    for (int i = 0; i < r.experts; ++i) taken[i] = !allowed[i / each];
  }
  take_largest(r.experts, r.top_k, [&](int i) { return choice[i]; }, taken, ids);
  float sum = 0.0f;
  for (int k = 0; k < r.top_k; ++k) sum += weights[k] = logits[ids[k]];
  for (int k = 0; k < r.top_k; ++k) weights[k] = (r.normalize ? weights[k] / (sum + 1e-20f) : weights[k]) * r.scale;
}

// Fills ids and weights of all rows. Synchronises in the middle and at the end.
static inline void route(const Experts& e, const ExpertMemory& m, const float* x, int ld, int rows, const Team& team) {
  router_logits(e, m, x, ld, rows, team);
  team.sync();
  const Range share = team.share(rows);
  const int k = e.routing.top_k;
  for (int t = share.begin; t < share.end; ++t) {
    route_row(e.routing, e.bias, m.logits + static_cast<size_t>(t) * m.logits_ld, m.ids + static_cast<size_t>(t) * k,
              m.weights + static_cast<size_t>(t) * k);
  }
  team.sync();
}

}  // namespace DS_ISA
}  // namespace deepseek

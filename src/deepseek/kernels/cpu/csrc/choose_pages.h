// Sparse attention of prompts: a tile of query rows chooses the pages of its context that it reads.
//
// What it does not read is taken as in sparse.h: the page's estimated weight times the mean of its values. Weights of whole
// pages follow from the mean key alone, as if the keys around it were normally distributed with the same variance in all
// directions: log E[exp(q k)] = q mean + |q|^2 variance / 2.
#pragma once
#include "attention_tile.h"
#include "gather.h"
#include "page_index.h"
#include "sparse_api.h"

namespace deepseek {
namespace DS_ISA {

constexpr float kPageFactor = 25.0f;    // measured: with it a prompt changes what follows as much as decoding does
constexpr int kSampleStride = 64;      // of these pages, one is a sample of how log weights vary within pages
constexpr int kSampleKeys = 32;        // tokens of it
constexpr float kMostRead = 0.6f;      // of the pages; above, all of them are read

template <class Source>
struct PageChoice {
  static constexpr int kStride = Source::kStride;

  Tile<Source>& tile;
  const int32_t* context;  // its pages
  const PageIndex& index;
  float error;
  int first, count;    // pages [first, first + count) are the middle
  int padded;
  float* weights;      // [rows][padded]: scores of the pages' means, later their weights
  float* sums;         // [rows][kStride]: weights times means of values
  float *variances, *spreads, *key_scales, *value_scales;
  int32_t* list;
  uint8_t* chosen;     // [padded]
  float half_norms[kTileRows], shifts[kTileRows], masses[kTileRows];
  int listed = 0;

  PageChoice(Tile<Source>& of, const PageIndex& from, float allowed, int group, float* room)
      : tile(of), context(of.pages), index(from), error(allowed), first(1) {
    const int queries = tile.layout.query_starts[tile.task.sequence + 1] - tile.layout.query_starts[tile.task.sequence];
    const int position = tile.layout.context_lens[tile.task.sequence] - queries + tile.task.first_row / group;
    count = max_int(0, (position + 1 - kRecentTokens) / kIndexTokens - first);
    padded = (count + kIndexTokens - 1) / kIndexTokens * kIndexTokens;
    weights = room;
    sums = weights + static_cast<int64_t>(kTileRows) * padded;
    variances = sums + kTileRows * kStride;
    spreads = variances + padded;
    key_scales = spreads + padded;
    value_scales = key_scales + padded;
    list = reinterpret_cast<int32_t*>(value_scales + padded);
    chosen = reinterpret_cast<uint8_t*>(list + padded);
  }

  int rows() const { return tile.task.rows; }
  float* weights_of(int r) const { return weights + static_cast<int64_t>(r) * padded; }

  // Scores of the means of all pages of the middle, from the tile's fp32 queries.
  void score_means() {
    const int dim = tile.source.key_dim;
    const int8_t* means[kIndexTokens];
    for (int p = 0; p < padded; p += kIndexTokens) {
      const int own = min_int(kIndexTokens, count - p);
      for (int i = 0; i < kIndexTokens; ++i) {
        const int number = context[first + p + min_int(i, own - 1)];
        const KeySummary& key = index.key(number, tile.task.kv_head);
        const ValueSummary& value = index.value(number, tile.task.kv_head);
        means[i] = mean_of(key);
        key_scales[p + i] = key.scale;
        variances[p + i] = key.variance;
        value_scales[p + i] = value.scale;
        spreads[p + i] = value.spread;
      }
      gather_scores<kStride>(rows(), tile.queries, means, kIndexTokens, dim, tile.keys, tile.weights);
      for (int r = 0; r < rows(); ++r) {
        for (int i = 0; i < kIndexTokens; i += kLanes) {
          store(weights_of(r) + p + i, mul(load(tile.weights + r * kScoreStride + i), load(key_scales + p + i)));
        }
      }
    }
    for (int r = 0; r < rows(); ++r) half_norms[r] = 0.5f * square_norm(tile.queries + r * kStride, dim);
    sample_variance();
  }

  // Scales half_norms to what a sample of pages shows.
  void sample_variance() {
    float shares[kTileRows] = {};
    int samples = 0;
    for (int p = kSampleStride / 2; p < count; p += kSampleStride, ++samples) {
      const auto* rows_of = tile.source.keys(context[first + p], tile.task.kv_head);
      const float* scales = tile.source.key_scales(context[first + p], tile.task.kv_head);
      const std::remove_reference_t<decltype(*rows_of)>* keys[kSampleKeys];
      for (int i = 0; i < kSampleKeys; ++i) keys[i] = rows_of + i * tile.source.key_dim;
      gather_scores<kStride>(rows(), tile.queries, keys, kSampleKeys, tile.source.key_dim, tile.keys, tile.weights);
      for (int r = 0; r < rows(); ++r) {
        float* scores = tile.weights + r * kScoreStride;
        for (int i = 0; scales && i < kSampleKeys; ++i) scores[i] *= scales[i];
        shares[r] += share_of_variance(scores, kSampleKeys, weights_of(r)[p], 2.0f * half_norms[r] * variances[p]);
      }
    }
    for (int r = 0; samples && r < rows(); ++r) half_norms[r] *= shares[r] / static_cast<float>(samples);
  }

  // Weights of all pages, relative to the shift of their row, and what they add to its result.
  void estimate() {
    for (int r = 0; r < rows(); ++r) {
      float* own = weights_of(r);
      const Vec half = set1(half_norms[r]), most = set1(0.5f * kMostVariance);
      Vec top = set1(-INFINITY);
      for (int p = 0; p < padded; p += kLanes) {
        const Vec x = add(load(own + p), min(mul(half, load(variances + p)), most));
        store(own + p, x);
        top = max(x, top);
      }
      shifts[r] = reduce_max(top);
      Vec mass = zero();
      for (int p = 0; p < padded; p += kLanes) {
        const Vec w = mul(exp(sub(load(own + p), set1(shifts[r]))), set1(static_cast<float>(kIndexTokens)));
        store(own + p, w);
        mass = add(mass, w);
      }
      for (int p = count; p < padded; ++p) own[p] = 0.0f;
      masses[r] = 0.0f;
      for (int p = 0; p < count; ++p) masses[r] += own[p];
    }
    for (int r = 0; r < rows(); ++r) {
      for (int d = 0; d < tile.source.value_dim; d += kLanes) store(sums + r * kStride + d, zero());
    }
    add_means(1.0f, false);
  }

  // Adds `sign` times the weighted means of values, of all pages or of the chosen ones.
  void add_means(float sign, bool only_chosen) {
    const int8_t* means[kIndexTokens];
    for (int p = 0; p < count;) {
      int own = 0;
      for (; p < count && own < kIndexTokens; ++p) {
        if (only_chosen && !chosen[p]) continue;
        means[own] = mean_of(index.value(context[first + p], tile.task.kv_head));
        for (int r = 0; r < rows(); ++r) tile.weights[r * kScoreStride + own] = sign * weights_of(r)[p] * value_scales[p];
        ++own;
      }
      if (own) gather_values(rows(), tile.weights, kScoreStride, means, own, tile.source.value_dim, sums, kStride);
    }
  }

  // Lists the pages to be read, once the rows have seen the exact part, and takes their estimates off.
  void choose() {
    std::memset(chosen, 0, padded);
    for (int r = 0; r < rows(); ++r) mark(r);
    for (int p = 0; p < count; ++p) listed += chosen[p];
    if (listed > kMostRead * count) {
      std::memset(chosen, 1, count);
      listed = count;
    }
    int n = 0;
    for (int p = 0; p < count; ++p) {
      if (!chosen[p]) continue;
      list[n++] = context[first + p];
      for (int r = 0; r < rows(); ++r) masses[r] -= weights_of(r)[p];
    }
    for (int r = 0; r < rows(); ++r) masses[r] = masses[r] > 0.0f ? masses[r] : 0.0f;
    add_means(-1.0f, true);
  }

  // Chooses for row r: a page's mean of values is wrong by about (sum of squared weights within it) * spread.
  void mark(int r) {
    const float* own = weights_of(r);
    const int dim = tile.source.value_dim;
    const float top = tile.state_maximum[r] > shifts[r] ? tile.state_maximum[r] : shifts[r];
    const float exact = std::exp(tile.state_maximum[r] - top), rest = std::exp(shifts[r] - top);
    const float mass = tile.state_total[r] * exact + masses[r] * rest;
    Vec square = zero();
    const float* state = tile.state + r * kStride;
    for (int d = 0; d < dim; d += kLanes) {
      const Vec x = fma(set1(exact), load(state + d), mul(set1(rest), load(sums + r * kStride + d)));
      square = fma(x, x, square);
    }
    float spread = 0.0f;
    for (int p = 0; p < count; ++p) spread += own[p] * spreads[p];
    if (!(masses[r] > 0.0f) || !(spread > 0.0f)) return;
    // threshold of weight * (e^variance - 1) / 64, relative to the row's own shift
    const float least = kPageFactor * error * error * reduce_add(square) / (spread * rest * rest);
    const Vec half = set1(half_norms[r]), limit = set1(least * kIndexTokens);
    (void)mass;
    for (int p = 0; p < padded; p += kLanes) {
      const Vec variance = min(mul(add(half, half), load(variances + p)), set1(kMostVariance));
      float excess[kLanes];
      store(excess, sub(mul(load(own + p), sub(exp(variance), set1(1.0f))), limit));
      for (int i = 0; i < kLanes; ++i) chosen[p + i] |= excess[i] >= 0.0f;
    }
    for (int p = count; p < padded; ++p) chosen[p] = 0;
  }

  // The tile sees the exact part of its context: its first page and the last ones.
  void look_at_exact(int32_t* pages) {
    const int last = (tile.high[rows() - 1] + kIndexTokens - 1) / kIndexTokens;
    int n = 0;
    for (int p = 0; p < last; ++p) {
      if (p < first || p >= first + count) pages[n++] = context[p];
    }
    for (int r = 0; r < rows(); ++r) tile.high[r] -= count * kIndexTokens;
    tile.pages = pages;
  }

  // The tile sees the chosen pages, all rows all of them.
  void look_at_chosen() {
    for (int r = 0; r < rows(); ++r) tile.high[r] = listed * kIndexTokens;
    tile.pages = list;
    tile.fresh = false;
  }

  void add_rest() {
    for (int r = 0; r < rows(); ++r) {
      merge_row(tile.state_maximum + r, tile.state_total + r, tile.state + r * kStride, shifts[r], masses[r], sums + r * kStride,
                tile.source.value_dim);
    }
  }
};

}  // namespace DS_ISA
}  // namespace deepseek

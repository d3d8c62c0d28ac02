// Makes the index of full pages.
#pragma once
#include "attention_api.h"
#include "rotary_kv.h"
#include "rotation.h"

namespace deepseek {
namespace DS_ISA {

// Of log weights within a page; above, what its means tell would run away.
constexpr float kMostVariance = 3.0f;

// Keys do not vary alike in all directions. How much log weights vary within pages, as a share of |q|^2 variance, is taken from
// a sample of tokens of one page: log mean exp of their scores is base + share * variance / 2.
static inline float share_of_variance(const float* scores, int count, float base, float variance) {
  float top = scores[0], sum = 0.0f;
  for (int i = 1; i < count; ++i) top = scores[i] > top ? scores[i] : top;
  for (int i = 0; i < count; ++i) sum += first_lane(exp(set1(scores[i] - top)));
  const float share = (top + std::log(sum / static_cast<float>(count)) - base) / (0.5f * variance);
  return share > 0.0f ? share < 1.0f ? share : 1.0f : 0.0f;  // 0 for NaN
}

// Rows of 64 tokens as floats, of one page and head.
template <class T>
static void load_rows(const T* from, int ld, const float* scales, int dim, float* to) {
  for (int t = 0; t < kIndexTokens; ++t, from += ld, to += dim) {
    const Vec scale = set1(scales ? scales[t] : 1.0f);
    for (int d = 0; d < dim; d += kLanes) store(to + d, mul(load_any(from + d), scale));
  }
}

// Quantizes the mean of the rows and leaves the rows as distances from it. Returns the mean's scale.
static float take_mean(float* rows, int dim, int8_t* mean) {
  float sums[kMaxRotated];
  for (int d = 0; d < dim; d += kLanes) {
    Vec sum = zero();
    for (int t = 0; t < kIndexTokens; ++t) sum = add(sum, load(rows + t * dim + d));
    store(sums + d, mul(sum, set1(1.0f / kIndexTokens)));
  }
  const float scale = store_quantized(sums, dim, mean);
  for (int d = 0; d < dim; d += kLanes) {
    const Vec whole = mul(load_int8(mean + d), set1(scale));
    for (int t = 0; t < kIndexTokens; ++t) store(rows + t * dim + d, sub(load(rows + t * dim + d), whole));
  }
  return scale;
}

static inline float sum_magnitudes(const float* x, int dim) {
  Vec sum = zero();
  for (int d = 0; d < dim; d += kLanes) sum = add(sum, max_magnitude(load(x + d), zero()));
  return reduce_add(sum);
}

// Token t's bits of x's signs.
static inline void put_code(const float* x, int dim, int t, uint8_t* codes) {
  uint8_t* to = codes + 2 * (t % 32) + t / 32;
  for (int d = 0; d < dim; d += 8, to += kIndexTokens) {
    unsigned bits = 0;
    for (int i = 0; i < 8; ++i) bits |= (x[d + i] >= 0.0f ? 1u : 0u) << i;
    *to = static_cast<uint8_t>(bits);
  }
}

static void index_keys(float* rows, int dim, KeySummary& summary, uint8_t* codes) {
  float alphas[kIndexTokens], largest = 0.0f, squares = 0.0f, noise = 0.0f;
  summary.scale = take_mean(rows, dim, reinterpret_cast<int8_t*>(&summary + 1));
  for (int t = 0; t < kIndexTokens; ++t) {
    float* row = rows + t * dim;
    const float square = square_norm(row, dim);
    rotate_randomly(row, dim);
    put_code(row, dim, t, codes);
    alphas[t] = sum_magnitudes(row, dim) / static_cast<float>(dim);
    largest = alphas[t] > largest ? alphas[t] : largest;
    squares += square;
    noise += square - static_cast<float>(dim) * alphas[t] * alphas[t];
  }
  const float each = 1.0f / static_cast<float>(kIndexTokens * dim);
  summary.alpha_scale = largest / 255.0f;
  summary.noise = noise > 0.0f ? noise * each : 0.0f;
  summary.variance = squares * each;
  uint8_t* to = codes + dim / 8 * kIndexTokens;
  const float inverse = largest > 0.0f ? 255.0f / largest : 0.0f;
  for (int t = 0; t < kIndexTokens; ++t) to[t] = static_cast<uint8_t>(alphas[t] * inverse + 0.5f);
}

static void index_values(float* rows, int dim, ValueSummary& summary) {
  float longest = 0.0f, squares = 0.0f;
  for (int t = 0; t < kIndexTokens; ++t) {
    const float norm = square_norm(rows + t * dim, dim);
    longest = norm > longest ? norm : longest;
  }
  summary.scale = take_mean(rows, dim, reinterpret_cast<int8_t*>(&summary + 1));
  for (int t = 0; t < kIndexTokens; ++t) squares += square_norm(rows + t * dim, dim);
  summary.longest = std::sqrt(longest);
  summary.spread = squares / kIndexTokens;
  float mean[kMaxRotated];
  for (int d = 0; d < dim; d += kLanes) {
    store(mean + d, mul(load_int8(reinterpret_cast<int8_t*>(&summary + 1) + d), set1(summary.scale)));
  }
  summary.square = square_norm(mean, dim);
}

// Indexes one page and head. `room` holds 64 rows of floats.
template <class Source>
static void index_page(const Source& source, const PageIndex& index, int page, int head, float* room) {
  const size_t entry = index.entry(page, head);
  load_rows(source.keys(page, head), source.key_dim, source.key_scales(page, head), source.key_dim, room);
  index_keys(room, source.key_dim, *reinterpret_cast<KeySummary*>(index.keys + entry * index.key_bytes()), index.code(page, head));
  load_rows(source.values(page, head), source.value_ld(), source.value_scales(page, head), source.value_dim, room);
  index_values(room, source.value_dim, *reinterpret_cast<ValueSummary*>(index.values + entry * index.value_bytes()));
}

// Calls visit(page) for the pages that this step's rows have filled.
template <class Visit>
static void filled_pages(const Layout& layout, const Visit& visit) {
  for (int s = 0; s < layout.num_sequences; ++s) {
    const int rows = layout.query_starts[s + 1] - layout.query_starts[s];
    const int last = layout.context_lens[s] / kIndexTokens;
    for (int p = (layout.context_lens[s] - rows) / kIndexTokens; p < last; ++p) {
      visit(layout.pages[static_cast<int64_t>(s) * layout.pages_stride + p]);
    }
  }
}

template <class Source>
static void index_pages(const Source& source, const PageIndex& index, const Layout& layout, const Scratch& scratch, const Team& team) {
  int count = 0;
  filled_pages(layout, [&](int) { ++count; });
  if (count == 0) return;
  team.sync();
  float* room = scratch.floats + static_cast<int64_t>(team.rank) * kIndexTokens * source.key_dim;
  int64_t turn = 0;
  filled_pages(layout, [&](int page) {
    for (int head = 0; head < index.kv_heads; ++head, ++turn) {
      if (turn % team.size == team.rank) index_page(source, index, page, head, room);
    }
  });
  team.sync();
}

}  // namespace DS_ISA
}  // namespace deepseek

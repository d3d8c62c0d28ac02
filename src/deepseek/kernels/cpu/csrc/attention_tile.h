// Attention of one tile of query rows that share their keys and values.
//
// Every number of a row is computed by one sequence of operations, whatever rows share its tile: a score adds over the
// dimensions in order, the softmax of a partition takes its maximum over all visible scores first, values add over the
// tokens in order, and partitions are merged in order. Hidden tokens are skipped, not multiplied by zero, so what lies
// there (NaN, infinity) does not matter.
#pragma once
#include <cmath>

#include "attention_plan.h"
#include "attention_products.h"

namespace deepseek {
namespace DS_ISA {

// Scores of a row -> unnormalised weights. Tokens [low, high) are visible; weights of others are not defined, but for
// those that share a vector with a visible one: zero.
static inline void softmax_row(float* scores, int low, int high, float* maximum, float* sum) {
  alignas(64) static const float kIota[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Vec hidden = set1(-INFINITY), iota = load(kIota);
  const int begin = low & ~(kLanes - 1);
  Vec top = hidden;
  for (int t = begin; t < high; t += kLanes) {
    Vec x = load(scores + t);
    if (t < low || t + kLanes > high) {
      x = select_less(iota, set1(static_cast<float>(high - t)), x, hidden);
      x = select_less(iota, set1(static_cast<float>(low - t)), hidden, x);
      store(scores + t, x);
    }
    top = max(x, top);  // in this order NaN is passed over
  }
  *maximum = reduce_max(top);
  // Without a finite score the weights must not become NaN here: another partition may have one.
  const Vec shift = set1(*maximum == -INFINITY ? 0.0f : *maximum);
  Vec total = zero();
  for (int t = begin; t < high; t += kLanes) {
    const Vec w = exp(sub(load(scores + t), shift));
    store(scores + t, w);
    total = add(total, w);
  }
  *sum = reduce_add(total);
}

// Adds a partition's result (maximum, sum, values) to a row's running result.
static inline void merge_row(float* maximum, float* sum, float* values, float other_maximum, float other_sum,
                             const float* other_values, int dim) {
  const float top = *maximum > other_maximum ? *maximum : other_maximum;
  const Vec shift = set1(top == -INFINITY ? 0.0f : top);
  const Vec a = exp(sub(set1(*maximum), shift)), b = exp(sub(set1(other_maximum), shift));
  *maximum = top;
  *sum = first_lane(fma(set1(*sum), a, mul(set1(other_sum), b)));
  for (int d = 0; d < dim; d += kLanes) store(values + d, fma(load(values + d), a, mul(load(other_values + d), b)));
}

static inline void finish_row(float sum, const float* values, int dim, float* out) {
  const Vec inverse = set1(1.0f / sum);
  for (int d = 0; d < dim; d += kLanes) store(out + d, mul(load(values + d), inverse));
}

// The queries of a task, and its work space.
template <class Source>
struct Tile {
  static constexpr int kStride = Source::kStride;
  const Source& source;
  const Layout& layout;
  const AttentionTask& task;
  const int32_t* pages;  // of the context
  bool fresh = true;     // rows have no state yet
  float *queries, *weights, *sums, *state;                 // [kTileRows][kStride], weights [kTileRows][kScoreStride]
  float *keys, *values;                                    // one page as fp32
  int low[kTileRows], high[kTileRows];                     // what each row sees
  float maximum[kTileRows], total[kTileRows];              // of one partition
  float state_maximum[kTileRows], state_total[kTileRows];  // of all so far

  Tile(const Source& from, const Layout& facts, const AttentionTask& what, int group, int window, float* room)
      : source(from), layout(facts), task(what), pages(facts.pages + static_cast<int64_t>(what.sequence) * facts.pages_stride) {
    queries = room;
    sums = queries + kTileRows * kStride;
    state = sums + kTileRows * kStride;
    weights = state + kTileRows * kStride;
    keys = weights + kTileRows * kScoreStride;
    values = keys + source.key_dim * source.page_size;
    const int start = layout.context_lens[task.sequence] -
                      (layout.query_starts[task.sequence + 1] - layout.query_starts[task.sequence]);
    for (int r = 0; r < task.rows; ++r) {
      const int position = start + (task.first_row + r) / group;
      low[r] = first_visible(position, window);
      high[r] = position + 1;
    }
  }

  // What row r sees of tokens [begin, begin + count), relative to begin.
  Range visible(int r, int begin, int count) const {
    return {max_int(low[r] - begin, 0), min_int(high[r] - begin, count)};
  }
  int page(int position) const { return pages[position / source.page_size]; }
  int next_page(int position) const {
    return page(position + source.page_size < high[task.rows - 1] ? position + source.page_size : position);
  }
  // Rows are cut into blocks of nearly the same size. They are in the order of their positions, so the first row of a
  // block sees the lowest token and the last row the highest.
  int blocks() const { return (task.rows + kBlockRows - 1) / kBlockRows; }
  int block(int i) const { return task.rows * i / blocks(); }

  // Results of one partition of all rows: maximum, total, sums.
  void partition(int begin, int count) {
    const int stop = min_int(begin + count, high[task.rows - 1]);
    const int start = max_int(begin, low[0]) / source.page_size * source.page_size;
    for (int at = start; at < stop; at += source.page_size) score_page(at, begin);
    for (int r = 0; r < task.rows; ++r) {
      const Range seen = visible(r, begin, count);
      if (seen.begin >= seen.end) continue;
      softmax_row(weights + r * kScoreStride, seen.begin, seen.end, maximum + r, total + r);
      for (int d = 0; d < source.value_dim; d += kLanes) store(sums + r * kStride + d, zero());
    }
    for (int at = start; at < stop; at += source.page_size) value_page(at, begin);
  }

  void score_page(int at, int begin) {
    source.load_keys(page(at), next_page(at), task.kv_head, keys);
    const float* scales = source.key_scales(page(at), task.kv_head);
    for (int i = 0; i < blocks(); ++i) {
      const int first = block(i), last = block(i + 1);
      const int from = visible(first, at, source.page_size).begin;
      const int to = visible(last - 1, at, source.page_size).end;
      if (from >= to) continue;
      score_rows<kStride>(last - first, queries + first * kStride, keys, source.key_dim, scales,
                          weights + first * kScoreStride + (at - begin), from / kLanes, (to + kLanes - 1) / kLanes);
    }
  }

  void value_page(int at, int begin) {
    if (const float* scales = source.value_scales(page(at), task.kv_head)) scale_weights(at, begin, scales);
    if (source.widen_values(blocks())) {
      source.load_values(page(at), task.kv_head, values);
      value_page(at, begin, values, 0);
    } else {
      const auto* own = source.values(page(at), task.kv_head);
      value_page(at, begin, own, source.values(next_page(at), task.kv_head) - own);
    }
  }

  void scale_weights(int at, int begin, const float* scales) {
    for (int r = 0; r < task.rows; ++r) {
      const Range seen = visible(r, at, source.page_size);
      float* own = weights + r * kScoreStride + (at - begin);
      for (int t = seen.begin & ~(kLanes - 1); t < seen.end; t += kLanes) {
        store(own + t, mul(load(own + t), load(scales + t)));
      }
    }
  }

  template <class T>
  void value_page(int at, int begin, const T* page_values, int64_t ahead) {
    const int dim = source.value_dim;
    for (int i = 0; i < blocks(); ++i) {
      const int first = block(i), last = block(i + 1);
      // Tokens seen by all rows of the block; what only some of them see comes before and behind, row by row.
      const int from = visible(last - 1, at, source.page_size).begin;
      const int to = max_int(from, visible(first, at, source.page_size).end);
      for (int r = first; r < last; ++r) row_values(r, at, begin, page_values, 0, from);
      if (from < to) {
        value_rows<kStride>(last - first, weights + first * kScoreStride + (at - begin), page_values, ahead, dim, from,
                            to, sums + first * kStride);
      }
      for (int r = first; r < last; ++r) row_values(r, at, begin, page_values, to, source.page_size);
    }
  }

  // What row r sees of tokens [from, to) of a page.
  template <class T>
  void row_values(int r, int at, int begin, const T* page_values, int from, int to) {
    const Range seen = visible(r, at, source.page_size);
    from = max_int(from, seen.begin);
    to = min_int(to, seen.end);
    if (from >= to) return;
    value_block<1, kStride>(weights + r * kScoreStride + (at - begin), page_values, 0, source.value_dim, from, to,
                            sums + r * kStride);
  }

  // Adds the results of partition p of one row, which lie at `other`, to the row's state.
  void merge(int r, int p, float other_maximum, float other_total, const float* other, int count) {
    const Range seen = visible(r, p * count, count);
    if (seen.begin >= seen.end) return;
    float* own = state + r * kStride;
    if (fresh && p == low[r] / count) {
      state_maximum[r] = other_maximum;
      state_total[r] = other_total;
      std::memcpy(own, other, sizeof(float) * source.value_dim);
    } else {
      merge_row(state_maximum + r, state_total + r, own, other_maximum, other_total, other, source.value_dim);
    }
  }
};

// Rows of a batch: where the queries of a task come from and where its results go.
struct QueryRows {
  const float* q;
  int ldq;
  float* out;
  int ldo;
  int group;
  float scale;
};

template <class Source>
static void store_results(Tile<Source>& tile, const QueryRows& rows) {
  const AttentionTask& task = tile.task;
  const int start = tile.layout.query_starts[task.sequence], dim = tile.source.value_dim;
  for (int r = 0; r < task.rows; ++r) {
    const int position = (task.first_row + r) / rows.group, head = (task.first_row + r) % rows.group;
    float* to = rows.out + static_cast<int64_t>(start + position) * rows.ldo +
                static_cast<int64_t>(task.kv_head * rows.group + head) * dim;
    finish_row(tile.state_total[r], tile.state + r * Tile<Source>::kStride, dim, to);
  }
}

// The partial results of a split tile: [partition][row][maximum, total, 14 unused, values].
template <class Source>
static float* partial(const Tile<Source>& tile, const Plan& plan, int p, int r) {
  const AttentionTask& task = tile.task;
  const int64_t index = static_cast<int64_t>(p - task.tile_first) * task.rows + r;
  return plan.partials + task.partial + index * (tile.source.value_dim + 16);
}

}  // namespace DS_ISA
}  // namespace deepseek

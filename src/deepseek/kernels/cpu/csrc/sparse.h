// Sparse attention of single query rows over an indexed cache.
//
// The first page and the last tokens are exact. Of the middle, the sign codes of the index tell about how much each token
// weighs; tokens that weigh more than a threshold are read, the rest of a page is taken as its estimated weight times the
// mean of its values. That mean is wrong by sum p_t (v_t - mean), whose square is about sum p_t^2 spread, and
// sum p_t^2 <= threshold * sum p_t: so the threshold follows from the error that is allowed, and what is read from the
// threshold. A head that looks at everything evenly reads next to nothing, one that looks for a needle reads the needle.
//
// A row's result is a pure function of its query and the tokens' content: pieces lie at fixed positions.
#pragma once
#include "attention.h"
#include "gather.h"
#include "lookup.h"
#include "mla.h"
#include "page_index.h"
#include "sparse_api.h"

namespace deepseek {
namespace DS_ISA {

constexpr float kThresholdFactor = 1.6f;  // measured: with it the median error is about what was asked for
constexpr float kBinsPerNat = 16.0f;
constexpr float kBinOfShift = 64.0f;  // log weights are kept in a byte each: 12 below to 4 above a piece's shift
constexpr int kNoBin = 128;           // above all bins

// Results of one piece for one query head; weights are relative to exp(shift). Behind it lie the sums of values.
struct PieceResult {
  float shift, mass;
  float tail;     // part of the mass that is estimated
  float spread;   // mass times spread, summed
  float longest;  // norm of a value
  float read;     // tokens read, the same for all heads
  float dense;    // whether everything was read because most was selected
  float unused[9];
};

struct SparseMemory {
  float* results;     // [pieces][kv_heads][group][result]
  float* masses;      // [pieces][kv_heads][group][kPiecePages]
  int8_t* bins;       // [pieces][kv_heads][group][kPieceTokens]
  float* thresholds;  // [rows][heads]: log weight, and what led to it: estimate without the tail
  int* next;          // tasks taken, of each phase
  float* threads;
  SparseScratchSize size;
};

static inline SparseMemory place_sparse(const Scratch& scratch, const SparseScratchSize& size, const SparseRows& rows, int heads,
                                        int kv_heads) {
  const int64_t pieces = static_cast<int64_t>(rows.pieces) * kv_heads, group = heads / kv_heads;
  SparseMemory m;
  m.size = size;
  float* at = scratch.floats;
  m.next = reinterpret_cast<int*>(at);
  at += 64;
  m.results = at;
  at += pieces * group * size.result;
  m.masses = at;
  at += pieces * group * kPiecePages;
  m.bins = reinterpret_cast<int8_t*>(at);
  at += pieces * group * (kPieceTokens / 4);
  m.thresholds = at;
  at += static_cast<int64_t>(rows.count) * heads * 4;
  m.threads = reinterpret_cast<float*>(aligned(at));
  return m;
}

// The tokens of a page whose bin is at least `least`.
static inline uint64_t at_least(const int8_t* bins, int least) {
  if (least > 127) return 0;
  if (least <= -128) return ~uint64_t{0};
#ifdef __AVX512F__
  return _mm512_cmpge_epi8_mask(_mm512_loadu_si512(bins), _mm512_set1_epi8(static_cast<char>(least)));
#else
  const __m256i below = _mm256_set1_epi8(static_cast<char>(least - 1));
  const auto part = [&](int i) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bins + i));
    return static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpgt_epi8(x, below))));
  };
  return part(0) | part(32) << 32;
#endif
}

// One query row and KV head, with its group of query heads.
template <class Source>
struct SparseHead {
  static constexpr int kStride = Source::kStride;
  using T = std::remove_const_t<std::remove_pointer_t<decltype(std::declval<Source>().keys(0, 0))>>;

  const Source& source;
  const PageIndex& index;
  const Layout& layout;
  const QueryRows& rows;
  const SparseMemory& memory;
  const SparseRow& at;
  int row_index, kv_head, kv_heads;

  // Room of the thread.
  float *queries, *rotated, *scores, *keys, *bases, *logits, *halves;
  uint8_t* tables;
  uint16_t* sums;
  const T** key_rows;
  const T** value_rows;
  int32_t* tokens;

  SparseHead(const Source& from, const PageIndex& of, const Layout& facts, const QueryRows& queries_of, const SparseMemory& mem,
             const SparseRow& row, int number, int head, float* room)
      : source(from), index(of), layout(facts), rows(queries_of), memory(mem), at(row), row_index(number), kv_head(head),
        kv_heads(of.kv_heads) {
    constexpr int kTokens = kPieceTokens + kExactTokens;
    const auto take = [&](int64_t floats) {
      float* p = room;
      room += (floats + 15) / 16 * 16;
      return p;
    };
    queries = take(static_cast<int64_t>(group()) * kStride);
    rotated = take(static_cast<int64_t>(group()) * source.key_dim);
    tables = reinterpret_cast<uint8_t*>(take(static_cast<int64_t>(group()) * source.key_dim));
    scores = take(static_cast<int64_t>(group()) * kScoreStride);
    sums = reinterpret_cast<uint16_t*>(take(static_cast<int64_t>(group()) * kIndexTokens / 2));
    bases = take(static_cast<int64_t>(group()) * kPiecePages);
    halves = take(group());
    keys = take(static_cast<int64_t>(kIndexTokens) * source.key_dim);
    logits = take(static_cast<int64_t>(group()) * kTokens);
    tokens = reinterpret_cast<int32_t*>(take(kTokens));
    key_rows = reinterpret_cast<const T**>(take(2 * kIndexTokens));
    value_rows = reinterpret_cast<const T**>(take(2 * kIndexTokens));
  }

  int group() const { return rows.group; }
  int page(int p) const { return layout.pages[static_cast<int64_t>(at.sequence) * layout.pages_stride + p]; }
  int64_t piece_head(int piece) const {
    return (static_cast<int64_t>(at.first_piece + piece) * kv_heads + kv_head) * group();
  }
  PieceResult& result(int piece, int h) const {
    return *reinterpret_cast<PieceResult*>(memory.results + (piece_head(piece) + h) * memory.size.result);
  }
  float* values_of(int piece, int h) const { return reinterpret_cast<float*>(&result(piece, h) + 1); }
  float* masses(int piece, int h) const { return memory.masses + (piece_head(piece) + h) * kPiecePages; }
  int8_t* bins(int piece, int h) const { return memory.bins + (piece_head(piece) + h) * kPieceTokens; }
  float* threshold(int h) const {
    return memory.thresholds + ((static_cast<int64_t>(row_index) * kv_heads + kv_head) * group() + h) * 4;
  }

  void load_queries() const {
    const Vec scale = set1(rows.scale);
    for (int h = 0; h < group(); ++h) {
      const float* from = rows.q + static_cast<int64_t>(at.row) * rows.ldq +
                          static_cast<int64_t>(kv_head * group() + h) * source.key_dim;
      for (int d = 0; d < source.key_dim; d += kLanes) store(queries + h * kStride + d, mul(load(from + d), scale));
    }
  }

  // Estimates the weights of a piece of the middle, and the result if nothing of it is read.
  void estimate(int piece) {
    load_queries();
    const int dim = source.key_dim, first = 1 + piece * kPiecePages;
    const int count = min_int(kPiecePages, at.middle_end() - first);
    Lookup lookups[kMaxGroup];
    for (int h = 0; h < group(); ++h) {
      float* turned = rotated + static_cast<int64_t>(h) * dim;
      std::memcpy(turned, queries + h * kStride, sizeof(float) * dim);
      halves[h] = 0.5f * square_norm(turned, dim);
      rotate_randomly(turned, dim);
      lookups[h] = make_lookup(turned, dim, tables + static_cast<int64_t>(h) * dim * 4);
    }
    score_means(first, count);
    for (int h = 0; h < group(); ++h) {
      PieceResult& own = result(piece, h);
      own = {-INFINITY, 0, 0, 0, 0, 0, 0, {}};
      for (int p = 0; p < count; ++p) {
        const float base = bases[h * kPiecePages + p];
        own.shift = base > own.shift ? base : own.shift;
      }
      for (int d = 0; d < source.value_dim; d += kLanes) store(values_of(piece, h) + d, zero());
    }
    for (int p = 0; p < count; ++p) {
      const int number = page(first + p);
      if (p + 1 < count) prefetch_index(page(first + p + 1));
      const KeySummary& key = index.key(number, kv_head);
      const ValueSummary& value = index.value(number, kv_head);
      const uint8_t* codes = index.code(number, kv_head);
      score_codes(group(), codes, dim, tables, dim * 4, sums);
      for (int h = 0; h < group(); ++h) {
        PieceResult& own = result(piece, h);
        const float mass = weigh_page(lookups[h], key, codes + dim / 8 * kIndexTokens, sums + h * kIndexTokens,
                                      bases[h * kPiecePages + p] - own.shift, bins(piece, h) + p * kIndexTokens);
        masses(piece, h)[p] = mass;
        own.mass += mass;
        own.spread += mass * value.spread;
        own.longest = value.longest > own.longest ? value.longest : own.longest;
        add_mean(value, mass, values_of(piece, h));
      }
    }
    for (int h = 0; h < group(); ++h) result(piece, h).tail = result(piece, h).mass;
  }

  // Log weights of the pages' means, what codes leave open included.
  void score_means(int first, int count) const {
    for (int p = 0; p < count; ++p) {
      const KeySummary& key = index.key(page(first + p), kv_head);
      const int8_t* mean = mean_of(key);
      if (p + 1 < count) {
        const char* next = reinterpret_cast<const char*>(&index.key(page(first + p + 1), kv_head));
        for (size_t i = 0; i < index.key_bytes(); i += 64) _mm_prefetch(next + i, _MM_HINT_T0);
      }
      for (int h = 0; h < group(); ++h) {
        Vec sum = zero();
        for (int d = 0; d < source.key_dim; d += kLanes) sum = fma(load(queries + h * kStride + d), load_int8(mean + d), sum);
        bases[h * kPiecePages + p] = key.scale * reduce_add(sum) + halves[h] * key.noise;
      }
    }
  }

  void prefetch_index(int number) const {
    const char* codes = reinterpret_cast<const char*>(index.code(number, kv_head));
    for (size_t i = 0; i < index.code_bytes(); i += 64) _mm_prefetch(codes + i, _MM_HINT_T0);
    const char* value = reinterpret_cast<const char*>(&index.value(number, kv_head));
    for (size_t i = 0; i < index.value_bytes(); i += 64) _mm_prefetch(value + i, _MM_HINT_T0);
  }

  // Bins of a page's tokens, whose log weights are above + alpha * score; returns their sum of weights.
  static float weigh_page(const Lookup& lookup, const KeySummary& key, const uint8_t* alphas, const uint16_t* sums, float above,
                          int8_t* bins) {
    const Vec step = set1(lookup.step * key.alpha_scale), least = set1(lookup.least * key.alpha_scale), base = set1(above);
    Vec total = zero();
    for (int t = 0; t < kIndexTokens; t += kLanes) {
      const Vec log_weight = fma(load_uint8(alphas + t), fma(load_uint16(sums + t), step, least), base);
      total = add(total, exp(log_weight));
      store_int8(bins + t, fma(log_weight, set1(kBinsPerNat), set1(kBinOfShift)));
    }
    return reduce_add(total);
  }

  void add_mean(const ValueSummary& value, float weight, float* to) const {
    const Vec w = set1(weight * value.scale);
    const int8_t* mean = mean_of(value);
    for (int d = 0; d < source.value_dim; d += kLanes) store(to + d, fma(w, load_int8(mean + d), load(to + d)));
  }

  // The exact part.
  void attend_exactly() {
    load_queries();
    const int piece = at.middle_pieces(), end = at.middle_end() * kIndexTokens;
    int count = 0;
    for (int t = 0; t < min_int(kIndexTokens, at.context); ++t) tokens[count++] = t;
    for (int t = end; t < at.context; ++t) tokens[count++] = t;
    score_tokens(count);
    for (int h = 0; h < group(); ++h) {
      result(piece, h) = {-INFINITY, 0, 0, 0, 0, static_cast<float>(count), 0, {}};
      for (int d = 0; d < source.value_dim; d += kLanes) store(values_of(piece, h) + d, zero());
      weigh_tokens(piece, h, count);
    }
    sum_tokens(piece, count);
  }

  // Logits of the tokens in `tokens`.
  void score_tokens(int count) const {
    constexpr int kTokens = kPieceTokens + kExactTokens;
    for (int begin = 0; begin < count; begin += kIndexTokens) {
      const int own = min_int(kIndexTokens, count - begin), padded = (own + kLanes - 1) / kLanes * kLanes;
      for (int i = 0; i < padded; ++i) key_rows[i] = key_row(tokens[begin + min_int(i, own - 1)]);
      for (int i = begin + own; i < min_int(begin + own + kIndexTokens, count); ++i) prefetch_rows(key_row(tokens[i]), source.key_dim);
      gather_scores<kStride>(group(), queries, key_rows, padded, source.key_dim, keys, scores);
      for (int h = 0; h < group(); ++h) {
        float* to = logits + static_cast<int64_t>(h) * kTokens + begin;
        for (int i = 0; i < own; ++i) to[i] = scores[h * kScoreStride + i] * key_scale(tokens[begin + i]);
      }
    }
  }

  // Logits -> weights, relative to the piece's shift, which moves up to the largest of them; what the piece holds already
  // is scaled to it.
  void weigh_tokens(int piece, int h, int count) const {
    constexpr int kTokens = kPieceTokens + kExactTokens;
    PieceResult& own = result(piece, h);
    float* x = logits + static_cast<int64_t>(h) * kTokens;
    float top = own.shift;
    for (int i = 0; i < count; ++i) top = x[i] > top ? x[i] : top;
    if (top > own.shift && own.shift != -INFINITY) {
      const float by = first_lane(exp(set1(own.shift - top)));
      own.mass *= by;
      own.tail *= by;
      own.spread *= by;
      float* sums = values_of(piece, h);
      for (int d = 0; d < source.value_dim; d += kLanes) store(sums + d, mul(load(sums + d), set1(by)));
    }
    own.shift = top;
    const Vec shift = set1(top == -INFINITY ? 0.0f : top);
    for (int i = count; i % kLanes; ++i) x[i] = -INFINITY;
    Vec total = zero();
    for (int i = 0; i < count; i += kLanes) {
      const Vec w = exp(sub(load(x + i), shift));
      store(x + i, w);
      total = add(total, w);
    }
    own.mass += reduce_add(total);
  }

  // Adds weights times values of the tokens in `tokens`.
  void sum_tokens(int piece, int count) const {
    constexpr int kTokens = kPieceTokens + kExactTokens;
    const int ld = static_cast<int>(memory.size.result);
    for (int begin = 0; begin < count; begin += kIndexTokens) {
      const int own = min_int(kIndexTokens, count - begin);
      for (int i = 0; i < own; ++i) value_rows[i] = value_row(tokens[begin + i]);
      for (int i = begin + own; i < min_int(begin + own + kIndexTokens, count); ++i) {
        prefetch_rows(value_row(tokens[i]), source.value_dim);
      }
      if (sizeof(T) == 1) {
        for (int i = 0; i < own; ++i) {
          const float scale = value_scale(tokens[begin + i]);
          for (int h = 0; h < group(); ++h) logits[static_cast<int64_t>(h) * kTokens + begin + i] *= scale;
        }
      }
      gather_values(group(), logits + begin, kTokens, value_rows, own, source.value_dim, values_of(piece, 0), ld);
    }
  }

  static void prefetch_rows(const T* row, int dim) {
    for (int i = 0; i < dim; i += 64 / static_cast<int>(sizeof(T))) _mm_prefetch(reinterpret_cast<const char*>(row + i), _MM_HINT_T0);
  }
  const T* key_row(int t) const {
    return source.keys(page(t / kIndexTokens), kv_head) + static_cast<int64_t>(t % kIndexTokens) * source.key_dim;
  }
  const T* value_row(int t) const {
    return source.values(page(t / kIndexTokens), kv_head) + static_cast<int64_t>(t % kIndexTokens) * source.value_ld();
  }
  float key_scale(int t) const {
    const float* scales = source.key_scales(page(t / kIndexTokens), kv_head);
    return scales ? scales[t % kIndexTokens] : 1.0f;
  }
  float value_scale(int t) const {
    const float* scales = source.value_scales(page(t / kIndexTokens), kv_head);
    return scales ? scales[t % kIndexTokens] : 1.0f;
  }

  // Where all pieces meet: weights relative to exp(shift). `to` is the output before it is divided by the sum of weights.
  struct Whole {
    float shift, mass, tail, spread, longest;
  };
  Whole merge(int h, float* to) const {
    const int pieces = at.pieces();
    Whole whole{-INFINITY, 0, 0, 0, 0};
    for (int i = 0; i < pieces; ++i) whole.shift = result(i, h).shift > whole.shift ? result(i, h).shift : whole.shift;
    for (int d = 0; d < source.value_dim; d += kLanes) store(to + d, zero());
    for (int i = 0; i < pieces; ++i) {
      const PieceResult& own = result(i, h);
      const Vec factor = exp(set1(own.shift - whole.shift));
      const float by = first_lane(factor);
      whole.mass += own.mass * by;
      whole.tail += own.tail * by;
      whole.spread += own.spread * by;
      whole.longest = own.longest > whole.longest ? own.longest : whole.longest;
      const float* values = values_of(i, h);
      for (int d = 0; d < source.value_dim; d += kLanes) store(to + d, fma(factor, load(values + d), load(to + d)));
    }
    return whole;
  }

  // The log weight from which on a token is read.
  void choose_threshold() const {
    for (int h = 0; h < group(); ++h) {
      const Whole whole = merge(h, keys);
      float* to = threshold(h);
      to[0] = INFINITY;
      to[1] = 0.0f;
      if (whole.tail == 0.0f) continue;  // there is nothing to read
      const float length2 = square_norm(keys, source.value_dim) / (whole.mass * whole.mass);
      const float spread = whole.spread / whole.tail, share = whole.tail / whole.mass;
      const float least = kThresholdFactor * at.error * at.error * length2 / (spread * share);
      if (spread == 0.0f) continue;
      to[0] = least > 0.0f ? std::log(least * whole.mass) + whole.shift : -INFINITY;  // everything where something is not finite
      to[1] = least * spread / length2;
    }
  }

  // Reads what the threshold selects of a piece of the middle.
  void refine(int piece) {
    const int first = 1 + piece * kPiecePages, count = min_int(kPiecePages, at.middle_end() - first);
    int least[kMaxGroup];
    for (int h = 0; h < group(); ++h) {
      const float bin = (threshold(h)[0] - result(piece, h).shift) * kBinsPerNat + kBinOfShift;
      least[h] = bin >= 128.0f ? kNoBin : bin > -128.0f ? static_cast<int>(std::ceil(bin)) : -128;
    }
    uint64_t selected[kPiecePages];
    int chosen = 0;
    for (int p = 0; p < count; ++p) {
      selected[p] = 0;
      for (int h = 0; h < group(); ++h) selected[p] |= at_least(bins(piece, h) + p * kIndexTokens, least[h]);
      chosen += __builtin_popcountll(selected[p]);
    }
    if (chosen == 0) return;
    const bool dense = 2 * chosen > count * kIndexTokens;
    int listed = 0;
    for (int p = 0; p < count; ++p) {
      if (dense) selected[p] = ~uint64_t{0};
      for (uint64_t left = selected[p]; left; left &= left - 1) {
        tokens[listed++] = (first + p) * kIndexTokens + __builtin_ctzll(left);
      }
    }
    load_queries();
    score_tokens(listed);
    for (int h = 0; h < group(); ++h) {
      replace_estimates(piece, h, first, count, selected);
      weigh_tokens(piece, h, listed);
      PieceResult& own = result(piece, h);
      own.read = static_cast<float>(listed);
      own.dense = dense;
      share_out_means(piece, h, count, selected);
    }
    sum_tokens(piece, listed);
  }

  // Takes the estimates of the selected tokens out of a piece's result.
  void replace_estimates(int piece, int h, int first, int count, const uint64_t* selected) {
    PieceResult& own = result(piece, h);
    float* mass = masses(piece, h);
    for (int p = 0; p < count; ++p) {
      if (selected[p] == 0) continue;
      const ValueSummary& value = index.value(page(first + p), kv_head);
      const int left = kIndexTokens - __builtin_popcountll(selected[p]);
      const float rest = left ? rest_of_page(bins(piece, h) + p * kIndexTokens, selected[p]) : 0.0f;
      // The mean of those that are left is (64 mean - sum of the selected) / left; share_out_means takes the sum off.
      const float each = left ? rest / static_cast<float>(left) : 0.0f;
      add_mean(value, each * kIndexTokens - mass[p], values_of(piece, h));
      own.mass += rest - mass[p];
      own.tail += rest - mass[p];
      own.spread += (rest - mass[p]) * value.spread;
      mass[p] = each;
    }
    // Differences of sums: what should be nothing may come out just below.
    own.mass = own.mass > 0.0f ? own.mass : 0.0f;
    own.tail = own.tail > 0.0f ? own.tail : 0.0f;
    own.spread = own.spread > 0.0f ? own.spread : 0.0f;
    // Masses were relative to the shift before exact logits move it.
    estimate_shift[h] = own.shift;
  }

  // Estimated weights of the tokens that are not selected.
  static float rest_of_page(const int8_t* bins, uint64_t selected) {
    float weights[kIndexTokens];
    for (int t = 0; t < kIndexTokens; t += kLanes) {
      store(weights + t, exp(mul(sub(load_int8(bins + t), set1(kBinOfShift)), set1(1.0f / kBinsPerNat))));
    }
    for (uint64_t left = selected; left; left &= left - 1) weights[__builtin_ctzll(left)] = 0.0f;
    Vec sum = zero();
    for (int t = 0; t < kIndexTokens; t += kLanes) sum = add(sum, load(weights + t));
    return reduce_add(sum);
  }

  // The weights of the selected tokens, less what the mean of their page counts for them.
  void share_out_means(int piece, int h, int count, const uint64_t* selected) const {
    constexpr int kTokens = kPieceTokens + kExactTokens;
    const float by = first_lane(exp(set1(estimate_shift[h] - result(piece, h).shift)));
    const float* each = masses(piece, h);
    float* weights = logits + static_cast<int64_t>(h) * kTokens;
    int i = 0;
    for (int p = 0; p < count; ++p) {
      for (int n = __builtin_popcountll(selected[p]); n > 0; --n) weights[i++] -= each[p] * by;
    }
  }

  void finish(SparseStats& stats) const {
    float read = 0.0f, dense = 0.0f;
    for (int i = 0; i < at.pieces(); ++i) {
      read += result(i, 0).read;
      dense += result(i, 0).dense;
    }
    for (int h = 0; h < group(); ++h) {
      const Whole whole = merge(h, keys);
      float* to = rows.out + static_cast<int64_t>(at.row) * rows.ldo + static_cast<int64_t>(kv_head * group() + h) * source.value_dim;
      finish_row(whole.mass, keys, source.value_dim, to);
      const float tail = whole.tail / whole.mass, length = std::sqrt(square_norm(to, source.value_dim));
      ++stats.heads;
      stats.tail += tail;
      stats.estimate += std::sqrt(threshold(h)[1] * tail);
      // The weights of the tail are themselves estimated: they are counted twice.
      stats.bound += length > 0.0f ? 4.0f * tail * whole.longest / length : 0.0f;
    }
    const int middle = (at.middle_end() - 1);
    const double each = static_cast<double>(sizeof(T)) * (source.key_dim + source.value_dim) + (sizeof(T) == 1 ? 8 : 0);
    stats.context_tokens += at.context;
    stats.read_tokens += read;
    stats.dense_bytes += at.context * each;
    stats.bytes += read * each + static_cast<double>(middle) * (index.key_bytes() + index.value_bytes() + index.code_bytes());
    stats.dense_pieces += dense;
    stats.pieces += at.middle_pieces();
  }

  static constexpr int kMaxGroup = 256;
  float estimate_shift[kMaxGroup];  // of a piece, before exact logits moved it
};

// Synchronises. Queries and results as in `attention`; only the listed rows are written.
template <class Source>
static void attend_sparsely(const Source& source, const PageIndex& index, const QueryRows& rows, const Layout& layout,
                            const SparseRows& sparse, SparseStats* stats, const Scratch& scratch, const Team& team) {
  const int kv_heads = index.kv_heads;
  const SparseScratchSize size = sparse_scratch(sparse.count, sparse.pieces, kv_heads * rows.group, kv_heads, source.key_dim,
                                                source.value_dim, Source::kStride, team.size);
  const SparseMemory memory = place_sparse(scratch, size, sparse, kv_heads * rows.group, kv_heads);
  if (team.rank == 0) std::memset(memory.next, 0, 64 * sizeof(float));
  team.sync();
  // visit(SparseHead, piece) for the pieces of all rows and heads, one thread each; phases count apart.
  const auto each_piece = [&](int phase, const auto& visit) {
    for (;;) {
      int64_t i = __atomic_fetch_add(memory.next + phase * 16, 1, __ATOMIC_RELAXED);
      if (i >= static_cast<int64_t>(sparse.pieces) * kv_heads) return;
      const int piece = static_cast<int>(i / kv_heads);
      int r = 0, high = sparse.count;
      while (high - r > 1) {
        const int middle = (r + high) / 2;
        (sparse.rows[middle].first_piece <= piece ? r : high) = middle;
      }
      visit(r, static_cast<int>(i % kv_heads), piece - sparse.rows[r].first_piece);
    }
  };
  const auto head_of = [&](int r, int head) {
    return SparseHead<Source>(source, index, layout, rows, memory, sparse.rows[r], r, head, memory.threads + team.rank * (size.thread + 64));
  };
  each_piece(0, [&](int r, int head, int piece) {
    SparseHead<Source> own = head_of(r, head);
    piece == sparse.rows[r].middle_pieces() ? own.attend_exactly() : own.estimate(piece);
  });
  team.sync();
  const int heads = sparse.count * kv_heads;
  for (int i = team.rank; i < heads; i += team.size) head_of(i / kv_heads, i % kv_heads).choose_threshold();
  team.sync();
  each_piece(1, [&](int r, int head, int piece) {
    if (piece < sparse.rows[r].middle_pieces()) head_of(r, head).refine(piece);
  });
  team.sync();
  for (int i = team.rank; i < heads; i += team.size) head_of(i / kv_heads, i % kv_heads).finish(stats[team.rank]);
  team.sync();
}

static void index_kv(const KvCache& cache, const Layout& layout, const Scratch& scratch, const Team& team) {
  if (cache.int8) {
    index_pages(KvSource<int8_t>(cache), cache.index, layout, scratch, team);
  } else {
    index_pages(KvSource<uint16_t>(cache), cache.index, layout, scratch, team);
  }
}

static void index_latents(const LatentCache& cache, const Layout& layout, const Scratch& scratch, const Team& team) {
  index_pages(LatentSource(cache), cache.index, layout, scratch, team);
}

static void sparse_attention(const KvCache& cache, const float* q, int ldq, float* out, int ldo, int heads, float scale,
                             const Layout& layout, const SparseRows& sparse, SparseStats* stats, const Scratch& scratch,
                             const Team& team) {
  const QueryRows rows{q, ldq, out, ldo, heads / cache.kv_heads, scale};
  if (cache.int8) {
    attend_sparsely(KvSource<int8_t>(cache), cache.index, rows, layout, sparse, stats, scratch, team);
  } else {
    attend_sparsely(KvSource<uint16_t>(cache), cache.index, rows, layout, sparse, stats, scratch, team);
  }
}

static void sparse_mla(const LatentCache& cache, const float* q, int ldq, float* out, int ldo, int heads, float scale,
                       const Layout& layout, const SparseRows& sparse, SparseStats* stats, const Scratch& scratch,
                       const Team& team) {
  attend_sparsely(LatentSource(cache), cache.index, QueryRows{q, ldq, out, ldo, heads, scale}, layout, sparse, stats, scratch, team);
}

}  // namespace DS_ISA
}  // namespace deepseek

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

constexpr float kFilterFactor = 0.25f;    // of the threshold: what means say of single tokens is uncertain
constexpr float kNegligible = 1e-4f;      // share of the weights whose values are not looked at
constexpr int kSampleTokens = 32;         // of each piece, that tell how much log weights vary within pages
constexpr int kFilterPages = 2048;        // middles of more pages are filtered
constexpr float kRounding = 1e-3f;        // relative, of queries and keys that both ways read exactly
constexpr int kPagesAhead = 8;  // whose codes are asked for
constexpr float kBinsPerNat = 16.0f;
constexpr int kHighestBin = 127;          // log weights are kept in a byte each, 8 below to 8 above a piece's shift

// Results of one piece for one query head; weights are relative to exp(shift). Behind it lie the sums of values.
struct PieceResult {
  float shift, mass;
  float tail;     // part of the mass that is estimated
  float spread;   // mass times spread, summed
  float squares;  // mass times squared norm of the mean of values, summed
  float noise;    // mass times (relative variance of a weight that is told by its code), summed
  float longest;  // norm of a value
  float read;     // tokens read, the same for all heads
  float dense;    // whether everything was read because most was selected
  float unused[7];
};

struct SparseMemory {
  float* results;     // [pieces][kv_heads][group][result]
  float* masses;      // [pieces][kv_heads][group][3][kPiecePages]: weights, log weights of means, variances
  uint64_t* kept;     // [pieces][kv_heads]: pages whose codes are looked at
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
  at += pieces * group * 3 * kPiecePages;
  m.kept = reinterpret_cast<uint64_t*>(at);
  at += pieces * 2;
  m.bins = reinterpret_cast<int8_t*>(at);
  at += pieces * group * (kPieceTokens / 4);
  m.thresholds = at;
  at += static_cast<int64_t>(rows.count) * heads * 4;
  m.threads = reinterpret_cast<float*>(aligned(at));
  return m;
}

// The tokens of a page whose bin is at least `least`.
static inline uint64_t at_least(const int8_t* bins, int least) {
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
  const SparseRows& sparse;
  const SparseRow& at;
  int row_index, kv_head, kv_heads;

  // Room of the thread.
  float *queries, *rotated, *scores, *keys, *logits, *halves;
  uint8_t* tables;
  uint16_t* sums;
  const T** key_rows;
  const T** value_rows;
  int32_t* tokens;

  SparseHead(const Source& from, const PageIndex& of, const Layout& facts, const QueryRows& queries_of, const SparseMemory& mem,
             const SparseRows& all, int number, int head, float* room)
      : source(from), index(of), layout(facts), rows(queries_of), memory(mem), sparse(all), at(all.rows[number]), row_index(number), kv_head(head),
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
  float* masses(int piece, int h) const { return memory.masses + (piece_head(piece) + h) * 3 * kPiecePages; }
  float* bases(int piece, int h) const { return masses(piece, h) + kPiecePages; }
  float* excess(int piece, int h) const { return masses(piece, h) + 2 * kPiecePages; }
  uint64_t& kept(int piece) const { return memory.kept[static_cast<int64_t>(at.first_piece + piece) * kv_heads + kv_head]; }
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

  int first_page(int piece) const { return 1 + piece * kPiecePages; }
  int page_count(int piece) const { return min_int(kPiecePages, at.middle_end() - first_page(piece)); }
  // Long middles look at the means of pages first, and at the codes of those only that may hold tokens worth reading.
  bool filters() const { return at.middle_end() > kFilterPages; }

  // Log weights of the means of a piece's pages, and of all its pages by them alone if they are filtered.
  void score_means(int piece) {
    load_queries();
    const int first = first_page(piece), count = page_count(piece);
    const int8_t* means[kPiecePages];
    float scales[kPiecePages], variances[kPiecePages];
    for (int p = 0; p < kPiecePages; ++p) {
      const KeySummary& key = index.key(page(first + min_int(p, count - 1)), kv_head);
      means[p] = mean_of(key);
      for (int d = 64 - static_cast<int>(sizeof(KeySummary)); d < source.key_dim; d += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(means[p] + d), _MM_HINT_T0);
      }
      scales[p] = key.scale;
      variances[p] = filters() ? key.variance : key.noise;
    }
    gather_scores<kStride>(group(), queries, means, kPiecePages, source.key_dim, keys, scores);
    for (int h = 0; h < group(); ++h) {
      const Vec norm = set1(square_norm(queries + h * kStride, source.key_dim));
      for (int p = 0; p < kPiecePages; p += kLanes) {
        store(bases(piece, h) + p, mul(load(scores + h * kScoreStride + p), load(scales + p)));
        store(excess(piece, h) + p, mul(norm, load(variances + p)));
      }
    }
    if (filters()) sample_variance(piece);
    kept(piece) = filters() ? 0 : count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
    for (int h = 0; h < group(); ++h) {
      PieceResult& own = result(piece, h);
      own = {};
      for (int d = 0; d < source.value_dim; d += kLanes) store(values_of(piece, h) + d, zero());
      Vec top = set1(-INFINITY);
      for (int p = 0; p < kPiecePages; p += kLanes) {
        const Vec variance = min(load(excess(piece, h) + p), set1(filters() ? kMostVariance : kMostNoise));
        store(excess(piece, h) + p, variance);
        top = max(fma(variance, set1(0.5f), load(bases(piece, h) + p)), top);
      }
      own.shift = reduce_max(top);
      for (int p = 0; p < kPiecePages; p += kLanes) {
        const Vec log_weight = fma(load(excess(piece, h) + p), set1(0.5f), load(bases(piece, h) + p));
        const Vec weight = mul(exp(sub(log_weight, set1(own.shift))), set1(static_cast<float>(kIndexTokens)));
        store(masses(piece, h) + p, filters() ? weight : zero());
      }
      for (int p = count; p < kPiecePages; ++p) masses(piece, h)[p] = 0.0f;
      if (filters()) own.mass = own.tail = sum_of(masses(piece, h), kPiecePages);
    }
  }

  // Scales the variances of a piece's pages to what a sample of its first page shows.
  void sample_variance(int piece) {
    constexpr int kTokens = kPieceTokens + kExactTokens;
    for (int i = 0; i < kSampleTokens; ++i) tokens[i] = first_page(piece) * kIndexTokens + i;
    score_tokens(kSampleTokens);
    for (int h = 0; h < group(); ++h) {
      float* variances = excess(piece, h);
      const float share = share_of_variance(logits + static_cast<int64_t>(h) * kTokens, kSampleTokens, bases(piece, h)[0], variances[0]);
      for (int p = 0; p < kPiecePages; ++p) variances[p] *= share;
    }
  }

  // Means of values that are added to a piece's results.
  struct Means {
    int count = 0;
    float longest = 0.0f;
    const int8_t* rows[kPiecePages];
    float scales[kPiecePages], spreads[kPiecePages], squares[kPiecePages];

    void list(const ValueSummary& value) {
      longest = value.longest > longest ? value.longest : longest;
      rows[count] = mean_of(value);
      scales[count] = value.scale;
      spreads[count] = value.spread;
      squares[count++] = value.square;
    }
  };

  // Weights of the listed pages are in `scores`, variances of their log weights about what is known of them in `logits`.
  void add_means(int piece, Means& means) const {
    for (int i = means.count; i % kLanes; ++i) {
      means.scales[i] = means.spreads[i] = means.squares[i] = 0.0f;
      for (int h = 0; h < group(); ++h) scores[h * kScoreStride + i] = logits[h * kPieceTokens + i] = 0.0f;
    }
    for (int h = 0; h < group(); ++h) {
      Vec spread = zero(), square = zero(), noise = zero();
      for (int i = 0; i < means.count; i += kLanes) {
        const Vec mass = load(scores + h * kScoreStride + i);
        spread = fma(mass, load(means.spreads + i), spread);
        square = fma(mass, load(means.squares + i), square);
        noise = fma(mass, sub(exp(load(logits + h * kPieceTokens + i)), set1(1.0f)), noise);
      }
      PieceResult& own = result(piece, h);
      own.spread += reduce_add(spread);
      own.squares += reduce_add(square);
      own.noise += reduce_add(noise);
      own.longest = means.longest > own.longest ? means.longest : own.longest;
    }
    add_values(piece, means);
  }

  void add_values(int piece, const Means& means) const {
    for (int h = 0; h < group(); ++h) {
      float* weights = scores + h * kScoreStride;
      for (int i = 0; i < means.count; ++i) weights[i] *= means.scales[i];
    }
    gather_values(group(), scores, kScoreStride, means.rows, means.count, source.value_dim, values_of(piece, 0),
                  static_cast<int>(memory.size.result));
  }

  // What the means of values add to a filtered piece's result. Pages without weight are left out. The piece's mass keeps
  // them: all threads read the masses of all pieces in this phase.
  void sum_means(int piece) {
    const int first = first_page(piece), count = page_count(piece);
    for (int h = 0; h < group(); ++h) {
      const Whole whole = merge_masses(h);
      halves[h] = kNegligible * whole.mass * first_lane(exp(set1(whole.shift - result(piece, h).shift))) /
                  static_cast<float>(at.middle_end());
    }
    Means means;
    for (int p = 0; p < count; ++p) {
      bool weighs = false;
      for (int h = 0; h < group(); ++h) weighs = weighs || !(masses(piece, h)[p] < halves[h]);
      for (int h = 0; h < group(); ++h) {
        if (!weighs) masses(piece, h)[p] = 0.0f;
        scores[h * kScoreStride + means.count] = masses(piece, h)[p];
        logits[h * kPieceTokens + means.count] = excess(piece, h)[p];
      }
      if (weighs) means.list(index.value(page(first + p), kv_head));
    }
    add_means(piece, means);
  }

  // Keeps the pages whose tokens may lie above the threshold that follows from the means.
  void filter(int piece) {
    const int count = page_count(piece);
    uint64_t mask = 0;
    for (int h = 0; h < group(); ++h) {
      const float least = kFilterFactor * kIndexTokens * std::exp(threshold(h)[0] - result(piece, h).shift);
      for (int p = 0; p < count; ++p) {
        const float deviation = masses(piece, h)[p] * (std::exp(excess(piece, h)[p]) - 1.0f);
        mask |= static_cast<uint64_t>(!(deviation < least)) << p;
      }
    }
    kept(piece) = mask;
  }

  // Estimates the weights of all tokens of the kept pages by their codes.
  void score_pages(int piece) {
    if (filters()) filter(piece);
    const uint64_t mask = kept(piece);
    if (mask == 0) return;
    load_queries();
    const int dim = source.key_dim, first = first_page(piece);
    Lookup lookups[kMaxGroup];
    for (int h = 0; h < group(); ++h) {
      float* turned = rotated + static_cast<int64_t>(h) * dim;
      std::memcpy(turned, queries + h * kStride, sizeof(float) * dim);
      halves[h] = 0.5f * square_norm(turned, dim);
      rotate_randomly(turned, dim);
      lookups[h] = make_lookup(turned, dim, tables + static_cast<int64_t>(h) * dim * 4);
    }
    int listed[kPiecePages], count = 0;
    for (uint64_t left = mask; left; left &= left - 1) listed[count++] = __builtin_ctzll(left);
    Means means;
    for (int i = 0; i < count; ++i) {
      const int p = listed[i], number = page(first + p);
      if (i + kPagesAhead < count) prefetch_index(page(first + listed[i + kPagesAhead]));
      const KeySummary& key = index.key(number, kv_head);
      const uint8_t* codes = index.code(number, kv_head);
      score_codes(group(), codes, dim, tables, dim * 4, sums);
      for (int h = 0; h < group(); ++h) {
        const float noise = 2.0f * halves[h] * key.noise, variance = min_float(noise, kMostNoise);
        const float base = bases(piece, h)[p] + 0.5f * variance - result(piece, h).shift;
        int8_t* own = bins(piece, h) + p * kIndexTokens;
        const float mass = weigh_codes(lookups[h], key, codes + dim / 8 * kIndexTokens, sums + h * kIndexTokens, base,
                                       [&](int t, Vec log_weights) { store_int8(own + t, mul(log_weights, set1(kBinsPerNat))); });
        // Codes that tell nothing choose nothing: the page is read.
        if (noise > kMostNoise) std::memset(own, kHighestBin, kIndexTokens);
        scores[h * kScoreStride + i] = mass - masses(piece, h)[p];
        logits[h * kPieceTokens + i] = variance;
        masses(piece, h)[p] = mass;
      }
      means.list(index.value(number, kv_head));
    }
    for (int h = 0; h < group(); ++h) {
      PieceResult& own = result(piece, h);
      own.mass += sum_of(scores + h * kScoreStride, count);
      own.tail = own.mass;
    }
    add_means(piece, means);
  }

  static float sum_of(const float* x, int count) {
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) sum += x[i];
    return sum;
  }

  void prefetch_index(int number) const {
    const char* codes = reinterpret_cast<const char*>(index.code(number, kv_head));
    for (size_t i = 0; i < index.code_bytes(); i += 64) _mm_prefetch(codes + i, _MM_HINT_T0);
    const char* value = reinterpret_cast<const char*>(&index.value(number, kv_head));
    for (size_t i = 0; i < index.value_bytes(); i += 64) _mm_prefetch(value + i, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(&index.key(number, kv_head)), _MM_HINT_T0);
  }

  // The exact part.
  void attend_exactly() {
    load_queries();
    const int piece = at.middle_pieces(), end = at.middle_end() * kIndexTokens;
    int count = 0;
    for (int t = 0; t < min_int(kIndexTokens, at.context); ++t) tokens[count++] = t;
    for (int t = end; t < at.context; ++t) tokens[count++] = t;
    prefetch_keys(0, count);
    score_tokens(count);
    prefetch_values(0, count);
    for (int h = 0; h < group(); ++h) {
      result(piece, h) = {};
      result(piece, h).shift = -INFINITY;
      result(piece, h).read = static_cast<float>(count);
      for (int d = 0; d < source.value_dim; d += kLanes) store(values_of(piece, h) + d, zero());
      weigh_tokens(piece, h, count);
    }
    sum_tokens(piece, count);
  }

  // Logits of the tokens in `tokens`.
  void score_tokens(int count) const {
    constexpr int kTokens = kPieceTokens + kExactTokens;
    float scales[kIndexTokens];
    for (int begin = 0; begin < count; begin += kIndexTokens) {
      const int own = min_int(kIndexTokens, count - begin), padded = (own + kLanes - 1) / kLanes * kLanes;
      for (int i = 0; i < padded; ++i) {
        const int t = tokens[begin + min_int(i, own - 1)];
        key_rows[i] = key_row(t);
        scales[i] = key_scale(t);
      }
      prefetch_keys(begin + own, count);
      gather_scores<kStride>(group(), queries, key_rows, padded, source.key_dim, keys, scores);
      for (int h = 0; h < group(); ++h) {
        float* to = logits + static_cast<int64_t>(h) * kTokens + begin;
        for (int i = 0; i < padded; i += kLanes) store(to + i, mul(load(scores + h * kScoreStride + i), load(scales + i)));
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
      own.squares *= by;
      own.noise *= by;
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
    float scales[kIndexTokens] = {};
    for (int begin = 0; begin < count; begin += kIndexTokens) {
      const int own = min_int(kIndexTokens, count - begin);
      for (int i = 0; i < own; ++i) {
        value_rows[i] = value_row(tokens[begin + i]);
        scales[i] = value_scale(tokens[begin + i]);
      }
      prefetch_values(begin + own, count);
      for (int h = 0; sizeof(T) == 1 && h < group(); ++h) {
        float* weights = logits + static_cast<int64_t>(h) * kTokens + begin;
        for (int i = 0; i < own; i += kLanes) store(weights + i, mul(load(weights + i), load(scales + i)));
      }
      gather_values(group(), logits + begin, kTokens, value_rows, own, source.value_dim, values_of(piece, 0), ld);
    }
  }

  // Asks for the next ones of `count` listed tokens.
  void prefetch_keys(int begin, int count) const {
    for (int i = begin; i < min_int(begin + kIndexTokens, count); ++i) {
      prefetch_row(key_row(tokens[i]), source.key_dim, source.key_scales(page(tokens[i] / kIndexTokens), kv_head), tokens[i]);
    }
  }
  void prefetch_values(int begin, int count) const {
    for (int i = begin; i < min_int(begin + kIndexTokens, count); ++i) {
      prefetch_row(value_row(tokens[i]), source.value_dim, source.value_scales(page(tokens[i] / kIndexTokens), kv_head), tokens[i]);
    }
  }
  static void prefetch_row(const T* row, int dim, const float* scales, int t) {
    for (int i = 0; i < dim; i += 64 / static_cast<int>(sizeof(T))) _mm_prefetch(reinterpret_cast<const char*>(row + i), _MM_HINT_T0);
    if (scales) _mm_prefetch(reinterpret_cast<const char*>(scales + t % kIndexTokens), _MM_HINT_T0);
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
    float shift, mass, tail, spread, squares, noise, longest;
  };
  Whole merge_masses(int h) const {
    Whole whole{-INFINITY, 0, 0, 0, 0, 0, 0};
    for (int i = 0; i < at.pieces(); ++i) {
      const PieceResult& own = result(i, h);
      if (own.mass > 0.0f && own.shift > whole.shift) whole.shift = own.shift;  // a piece may have nothing that weighs
    }
    for (int i = 0; i < at.pieces(); ++i) {
      const PieceResult& own = result(i, h);
      const float by = first_lane(exp(set1(own.shift - whole.shift)));
      whole.mass += own.mass * by;
      whole.tail += own.tail * by;
      whole.spread += own.spread * by;
      whole.squares += own.squares * by;
      whole.noise += own.noise * by;
      whole.longest = own.longest > whole.longest ? own.longest : whole.longest;
    }
    return whole;
  }
  Whole merge(int h, float* to) const {
    const Whole whole = merge_masses(h);
    for (int d = 0; d < source.value_dim; d += kLanes) store(to + d, zero());
    for (int i = 0; i < at.pieces(); ++i) {
      const Vec by = exp(set1(result(i, h).shift - whole.shift));
      const float* values = values_of(i, h);
      for (int d = 0; d < source.value_dim; d += kLanes) store(to + d, fma(by, load(values + d), load(to + d)));
    }
    return whole;
  }

  // The log weight from which on a token is read. A token that is not read is wrong in two ways: its value is not the mean of
  // its page (spread), and its weight is not what its code tells (noise), which pulls the result towards the mean.
  void choose_threshold() const {
    for (int h = 0; h < group(); ++h) {
      float* output = keys;
      const Whole whole = merge(h, output);
      float* to = threshold(h);
      to[0] = INFINITY;
      to[1] = 0.0f;
      if (whole.tail == 0.0f) continue;  // there is nothing to read
      const Vec inverse = set1(1.0f / whole.mass);
      const float* exact = values_of(at.middle_pieces(), h);
      const float by = first_lane(exp(set1(result(at.middle_pieces(), h).shift - whole.shift)));
      Vec square = zero(), along = zero();
      for (int d = 0; d < source.value_dim; d += kLanes) {
        const Vec sum = load(output + d), o = mul(sum, inverse);
        square = fma(o, o, square);
        along = fma(fnma(load(exact + d), set1(by), sum), o, along);  // the middle's part of the sum
      }
      const float length2 = reduce_add(square), tail = whole.tail;
      const float apart = (whole.squares - 2.0f * reduce_add(along)) / tail + length2;  // of means from the result, squared
      const float deviation = whole.spread / tail + whole.noise / tail * (apart > 0.0f ? apart : 0.0f);
      if (deviation == 0.0f) continue;
      const float least = kThresholdFactor * at.error * at.error * length2 / (deviation * tail / whole.mass);
      to[0] = least > 0.0f ? std::log(least * whole.mass) + whole.shift : -INFINITY;  // everything where something is not finite
      to[1] = least * deviation / length2;
    }
  }

  // Reads what the threshold selects of a piece of the middle.
  void refine(int piece) {
    const int first = first_page(piece), count = page_count(piece);
    int least[kMaxGroup];
    for (int h = 0; h < group(); ++h) {
      const float bin = std::ceil((threshold(h)[0] - result(piece, h).shift) * kBinsPerNat);
      // How far the highest ones are above is not known: they are always read.
      least[h] = bin >= kHighestBin ? kHighestBin : bin > -128.0f ? static_cast<int>(bin) : -128;
    }
    uint64_t selected[kPiecePages];
    int chosen = 0;
    for (int p = 0; p < count; ++p) {
      selected[p] = 0;
      if (!(kept(piece) >> p & 1)) continue;
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
    prefetch_keys(0, listed);
    load_queries();
    score_tokens(listed);
    prefetch_values(0, listed);
    sum_rest(piece, first, count, selected);
    for (int h = 0; h < group(); ++h) {
      weigh_tokens(piece, h, listed);
      PieceResult& own = result(piece, h);
      own.read = static_cast<float>(listed);
      own.dense = dense;
      share_out_means(piece, h, count, selected);
    }
    sum_tokens(piece, listed);
  }

  // A piece's result without the selected tokens, added up anew: next to theirs the rest may be too small to be left by a
  // subtraction.
  void sum_rest(int piece, int first, int count, const uint64_t* selected) {
    for (int h = 0; h < group(); ++h) {
      PieceResult& own = result(piece, h);
      own.mass = 0.0f;
      for (int d = 0; d < source.value_dim; d += kLanes) store(values_of(piece, h) + d, zero());
    }
    Means means;
    for (int p = 0; p < count; ++p) {
      const int left = kIndexTokens - __builtin_popcountll(selected[p]);
      bool weighs = false;
      for (int h = 0; h < group(); ++h) {
        float& mass = masses(piece, h)[p];
        if (left < kIndexTokens) mass = left ? rest_of_page(bins(piece, h) + p * kIndexTokens, selected[p]) : 0.0f;
        result(piece, h).mass += mass;
        // The mean of those that are left is (64 mean - sum of the selected) / left; share_out_means takes the sum off.
        mass = left ? mass / static_cast<float>(left) : 0.0f;
        scores[h * kScoreStride + means.count] = mass * kIndexTokens;
        weighs = weighs || mass != 0.0f;
      }
      if (weighs) means.list(index.value(page(first + p), kv_head));
    }
    add_values(piece, means);
    for (int h = 0; h < group(); ++h) {
      result(piece, h).tail = result(piece, h).mass;
      estimate_shift[h] = result(piece, h).shift;
    }
  }

  // Estimated weights of the tokens that are not selected.
  static float rest_of_page(const int8_t* bins, uint64_t selected) {
    float weights[kIndexTokens];
    for (int t = 0; t < kIndexTokens; t += kLanes) {
      store(weights + t, exp_roughly(mul(load_int8(bins + t), set1(1.0f / kBinsPerNat))));
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

  void compare(const float* result, int h, float bound, SparseStats& stats) const {
    const float* truth = sparse.truth + static_cast<int64_t>(at.row) * sparse.truth_ld +
                         static_cast<int64_t>(kv_head * group() + h) * source.value_dim;
    Vec square = zero();
    for (int d = 0; d < source.value_dim; d += kLanes) {
      const Vec x = sub(load(result + d), load(truth + d));
      square = fma(x, x, square);
    }
    const float length = std::sqrt(square_norm(truth, source.value_dim));
    const float error = length > 0.0f ? std::sqrt(reduce_add(square)) / length : 0.0f;
    ++stats.checks;
    stats.error += error;
    stats.violations += error > bound + kRounding;
  }

  void finish(SparseStats& stats) const {
    float read = 0.0f, dense = 0.0f;
    int scored = 0;
    for (int i = 0; i < at.middle_pieces(); ++i) scored += __builtin_popcountll(kept(i));
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
      const float bound = length > 0.0f ? 4.0f * tail * whole.longest / length : 0.0f;
      stats.bound += bound;
      if (sparse.truth) compare(to, h, bound, stats);
    }
    const int middle = (at.middle_end() - 1);
    const double each = static_cast<double>(sizeof(T)) * (source.key_dim + source.value_dim) + (sizeof(T) == 1 ? 8 : 0);
    stats.context_tokens += at.context;
    stats.read_tokens += read;
    stats.dense_bytes += at.context * each;
    stats.bytes += read * each + static_cast<double>(middle) * (index.key_bytes() + index.value_bytes()) +
                   static_cast<double>(scored) * index.code_bytes();
    stats.dense_pieces += dense;
    stats.pieces += at.middle_pieces();
  }

  static constexpr int kMaxGroup = 256;
  float estimate_shift[kMaxGroup];  // of a piece, before exact logits moved it
};

// Synchronises. Queries and results as in `attention`; only the listed rows are written.
template <class Source>
static void attend_sparsely(const Source& source, const PageIndex& index, const QueryRows& rows, const Layout& layout,
                            const SparseRows& sparse, const Scratch& scratch, const Team& team) {
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
      if (i >= static_cast<int64_t>(sparse.pieces) * kv_heads) break;
      const int piece = static_cast<int>(i / kv_heads);
      int r = 0, high = sparse.count;
      while (high - r > 1) {
        const int middle = (r + high) / 2;
        (sparse.rows[middle].first_piece <= piece ? r : high) = middle;
      }
      visit(r, static_cast<int>(i % kv_heads), piece - sparse.rows[r].first_piece);
    }
    team.sync();
  };
  const auto head_of = [&](int r, int head) {
    return SparseHead<Source>(source, index, layout, rows, memory, sparse, r, head, memory.threads + team.rank * (size.thread + 64));
  };
  const auto each_head = [&](const auto& visit) {
    for (int i = team.rank; i < sparse.count * kv_heads; i += team.size) visit(i / kv_heads, i % kv_heads);
    team.sync();
  };
  const auto is_middle = [&](int r, int piece) { return piece < sparse.rows[r].middle_pieces(); };
  const auto filters = [&](int r) { return head_of(r, 0).filters(); };
  each_piece(0, [&](int r, int head, int piece) {
    SparseHead<Source> own = head_of(r, head);
    is_middle(r, piece) ? own.score_means(piece) : own.attend_exactly();
  });
  bool some_filter = false;
  for (int r = 0; r < sparse.count; ++r) some_filter = some_filter || filters(r);
  if (some_filter) {
    each_piece(1, [&](int r, int head, int piece) {
      if (is_middle(r, piece) && filters(r)) head_of(r, head).sum_means(piece);
    });
    each_head([&](int r, int head) {
      if (filters(r)) head_of(r, head).choose_threshold();
    });
  }
  each_piece(2, [&](int r, int head, int piece) {
    if (is_middle(r, piece)) head_of(r, head).score_pages(piece);
  });
  each_head([&](int r, int head) { head_of(r, head).choose_threshold(); });
  each_piece(3, [&](int r, int head, int piece) {
    if (is_middle(r, piece)) head_of(r, head).refine(piece);
  });
  each_head([&](int r, int head) { head_of(r, head).finish(layout.stats[team.rank]); });
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
                             const Layout& layout, const SparseRows& sparse, const Scratch& scratch,
                             const Team& team) {
  const QueryRows rows{q, ldq, out, ldo, heads / cache.kv_heads, scale};
  if (cache.int8) {
    attend_sparsely(KvSource<int8_t>(cache), cache.index, rows, layout, sparse, scratch, team);
  } else {
    attend_sparsely(KvSource<uint16_t>(cache), cache.index, rows, layout, sparse, scratch, team);
  }
}

static void sparse_mla(const LatentCache& cache, const float* q, int ldq, float* out, int ldo, int heads, float scale,
                       const Layout& layout, const SparseRows& sparse, const Scratch& scratch,
                       const Team& team) {
  attend_sparsely(LatentSource(cache), cache.index, QueryRows{q, ldq, out, ldo, heads, scale}, layout, sparse, scratch, team);
}

}  // namespace DS_ISA
}  // namespace deepseek

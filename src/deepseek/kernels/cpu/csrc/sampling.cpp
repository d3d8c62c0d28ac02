// Sampling on large vocabularies. Compiled once per instruction set, with DS_ISA defined as the name of its table.
//
// A row is cut into blocks. Most of its tokens are never looked at twice: their block's largest logit tells that none of
// them can be among the kept ones. Weights are e^((logit - largest) / temperature), so the largest is exactly 1.
#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "team.h"
#include "vec.h"

namespace deepseek {
namespace DS_ISA {
namespace {

constexpr int kBlock = 256;
constexpr int kDrawing = 4;  // times the work of the likeliest token, about
constexpr int kLogitsPerThread = 1 << 21;  // reading so many costs as much as waking a thread that sleeps
constexpr double kUnlikely = 87.0;      // e^-x is taken as 0 from here on
constexpr float kMinTemperature = 1e-6f;

// A whole block that begins with the n floats at p: p itself, or a copy in `room`, filled up.
const float* whole(const float* p, int n, float filler, float* room) {
  if (n == kBlock) return p;
  std::fill(std::copy_n(p, n, room), room + kBlock, filler);
  return room;
}

// The largest of n > 0 logits; infinity if any is infinite or NaN.
float largest_of(const float* p, int n) {
  float room[kBlock];
  const float* block = whole(p, n, p[0], room);
  constexpr int kChains = 4;  // so that no maximum waits for the one before
  Vec largest[kChains], magnitude[kChains];
  for (int c = 0; c < kChains; ++c) largest[c] = magnitude[c] = set1(p[0]);
  for (int i = 0; i < kBlock; i += kChains * kLanes) {
    for (int c = 0; c < kChains; ++c) {
      const Vec x = load(block + i + c * kLanes);
      largest[c] = max(largest[c], x);
      magnitude[c] = max_magnitude(magnitude[c], x);
    }
  }
  const Vec all = max_magnitude(max_magnitude(magnitude[0], magnitude[1]), max_magnitude(magnitude[2], magnitude[3]));
  if (!std::isfinite(reduce_max_magnitude(all))) return std::numeric_limits<float>::infinity();
  return reduce_max(max(max(largest[0], largest[1]), max(largest[2], largest[3])));
}

// Turns logits into weights.
struct Weigh {
  float largest, inverse_temperature;

  Vec operator()(Vec logits) const { return exp(mul(sub(logits, set1(largest)), set1(inverse_temperature))); }

  // Writes the weights of n logits, and zeros up to a whole block; returns their sum.
  float operator()(const float* p, int n, float* weights) const {
    const float* block = whole(p, n, -std::numeric_limits<float>::infinity(), weights);
    Vec sum = zero();
    for (int i = 0; i < kBlock; i += kLanes) {
      const Vec w = (*this)(load(block + i));
      store(weights + i, w);
      sum = add(sum, w);
    }
    return reduce_add(sum);
  }
};

struct Candidate {
  float weight;
  int32_t token;
};

// By falling weight, equal ones by rising token.
void sort_falling(std::vector<Candidate>& candidates) {
  constexpr size_t kFew = 2048;
  constexpr int kBits = 11, kDigits = 1 << kBits;
  if (candidates.size() < kFew) {
    std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
      return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
    });
    return;
  }
  // Radix sort: positive floats are in the order of their bits, and candidates come in the order of their tokens.
  std::vector<Candidate> sorted(candidates.size());
  std::vector<uint32_t> place(kDigits);
  for (int shift = 0; shift < 32; shift += kBits) {
    const auto digit = [shift](const Candidate& c) {
      uint32_t bits;
      std::memcpy(&bits, &c.weight, sizeof bits);
      return ~bits >> shift & (kDigits - 1);
    };
    std::fill(place.begin(), place.end(), 0);
    for (const Candidate& c : candidates) ++place[digit(c)];
    uint32_t before = 0;
    for (uint32_t& p : place) before += std::exchange(p, before);
    for (const Candidate& c : candidates) sorted[place[digit(c)]++] = c;
    candidates.swap(sorted);
  }
}

// One thread's memory for the row at hand.
struct Room {
  std::vector<float> block_largest, block_sums;
  std::vector<Candidate> candidates;
};

class Row {
 public:
  Row(const float* logits, int vocab, const Choice& choice, Room& room)
      : logits_(logits), vocab_(vocab), choice_(choice), blocks_((vocab + kBlock - 1) / kBlock), room_(room) {
    room_.block_largest.resize(blocks_);
    for (int b = 0; b < blocks_; ++b) room_.block_largest[b] = largest_of(block(b), size(b));
    const float largest = *std::max_element(room_.block_largest.begin(), room_.block_largest.end());
    weigh_ = {largest, 1.0f / std::max(choice_.temperature, kMinTemperature)};
  }

  int32_t choose() {
    if (!std::isfinite(weigh_.largest)) return -1;
    if (choice_.temperature == 0) return likeliest();
    if (needs_total()) total_ = sum_all();
    const bool filtered = choice_.top_k > 0 || choice_.top_p < 1 || choice_.min_p > 0;
    return filtered ? draw_filtered() : draw_from_all();
  }

 private:
  const float* block(int b) const { return logits_ + b * kBlock; }
  int size(int b) const { return std::min(kBlock, vocab_ - b * kBlock); }
  // Top-p alone, or nothing, is a share of the mass of the whole row.
  bool needs_total() const { return choice_.top_k <= 0 && choice_.min_p <= 0; }

  double sum_all() {
    room_.block_sums.resize(blocks_);
    double total = 0;
    float weights[kBlock];
    for (int b = 0; b < blocks_; ++b) total += room_.block_sums[b] = weigh_(block(b), size(b), weights);
    return total;
  }

  // The first of the largest.
  int32_t likeliest() const {
    const std::vector<float>& of_blocks = room_.block_largest;
    const auto first = std::find(of_blocks.begin(), of_blocks.end(), weigh_.largest) - of_blocks.begin();
    return static_cast<int32_t>(std::find(block(static_cast<int>(first)), logits_ + vocab_, weigh_.largest) - logits_);
  }

  // The token at which the cumulative weight, by rising token, passes the draw's share of the total.
  int32_t draw_from_all() const {
    const double target = choice_.draw * total_;
    double before = 0;
    int chosen = 0;
    for (int b = 0; b < blocks_; ++b) {
      const float sum = room_.block_sums[b];
      if (!(sum > 0)) continue;
      chosen = b;
      if (before + sum > target) break;
      before += sum;
    }
    float weights[kBlock];
    weigh_(block(chosen), size(chosen), weights);
    int last = 0;  // rounding may leave the target behind all weights
    for (int i = 0; i < size(chosen); ++i) {
      if (!(weights[i] > 0)) continue;
      last = i;
      if ((before += weights[i]) > target) break;
    }
    return chosen * kBlock + last;
  }

  // A weight that tokens have to reach to be kept, or less.
  double least_weight() const {
    double least = choice_.min_p;
    if (choice_.top_k > 0 && choice_.top_k <= blocks_) {
      // So many blocks have a token of this weight or more.
      std::vector<float> sorted(room_.block_largest);
      std::nth_element(sorted.begin(), sorted.begin() + (choice_.top_k - 1), sorted.end(), std::greater<float>());
      const double x = (static_cast<double>(sorted[choice_.top_k - 1]) - weigh_.largest) * weigh_.inverse_temperature;
      least = std::max(least, std::exp(x));
    }
    // All tokens below this weight together have less than the mass that top-p leaves out.
    if (needs_total()) least = std::max(least, (1 - choice_.top_p) * total_ / vocab_);
    return least * 0.999;  // rounding
  }

  // All tokens of this weight or more.
  void collect(double least, std::vector<Candidate>& candidates) const {
    const double distance = std::min(kUnlikely, -std::log(std::max(least, 1e-300))) / weigh_.inverse_temperature;
    const float floor = static_cast<float>(weigh_.largest - distance * 1.001 - 1e-6 * std::fabs(weigh_.largest));
    candidates.clear();
    for (int b = 0; b < blocks_; ++b) {
      if (room_.block_largest[b] < floor) continue;
      float room[kBlock], weights[kLanes];
      const float* logits = whole(block(b), size(b), -std::numeric_limits<float>::infinity(), room);
      for (int first = 0; first < kBlock; first += kLanes) {
        const Vec x = load(logits + first);
        if (reduce_max(x) < floor) continue;
        store(weights, weigh_(x));
        for (int i = 0; i < kLanes; ++i) {
          if (weights[i] >= least && weights[i] > 0) candidates.push_back({weights[i], b * kBlock + first + i});
        }
      }
    }
  }

  // Min-p, top-k and top-p in turn; then as draw_from_all, by falling weight.
  int32_t draw_filtered() {
    std::vector<Candidate>& candidates = room_.candidates;
    collect(least_weight(), candidates);
    sort_falling(candidates);
    size_t kept = candidates.size();
    if (choice_.top_k > 0) kept = std::min<size_t>(kept, choice_.top_k);
    while (kept > 1 && candidates[kept - 1].weight < choice_.min_p) --kept;
    double mass = 0;
    if (needs_total()) {
      mass = total_;
    } else {
      for (size_t i = 0; i < kept; ++i) mass += candidates[i].weight;
    }
    double sum = 0;
    size_t end = 0;
    while (end < kept && (end == 0 || sum < choice_.top_p * mass)) sum += candidates[end++].weight;
    const double target = choice_.draw * sum;
    double before = 0;
    for (size_t i = 0; i < end; ++i) {
      if ((before += candidates[i].weight) > target) return candidates[i].token;
    }
    return candidates[end - 1].token;
  }

  const float* logits_;
  int vocab_;
  const Choice& choice_;
  int blocks_;
  Room& room_;
  Weigh weigh_{};
  double total_ = 0;
};

void choose_tokens(const float* logits, int rows, int vocab, const Choice* choices, int32_t* tokens, int threads) {
  int64_t work = 0;
  for (int r = 0; r < rows; ++r) work += (choices[r].temperature == 0 ? 1 : kDrawing) * static_cast<int64_t>(vocab);
  parallel(static_cast<int>(std::min<int64_t>(threads, 1 + work / kLogitsPerThread)), [&](const Team& team) {
    Room room;
    const Range own = team.share(rows);
    for (int r = own.begin; r < own.end; ++r) {
      tokens[r] = Row(logits + static_cast<size_t>(r) * vocab, vocab, choices[r], room).choose();
    }
  });
}

}  // namespace
}  // namespace DS_ISA

#define DS_JOIN2(a, b) a##b
#define DS_JOIN(a, b) DS_JOIN2(a, b)

void DS_JOIN(choose_tokens_, DS_ISA)(const float* logits, int rows, int vocab, const Choice* choices, int32_t* tokens,
                                     int threads) {
  DS_ISA::choose_tokens(logits, rows, vocab, choices, tokens, threads);
}

}  // namespace deepseek

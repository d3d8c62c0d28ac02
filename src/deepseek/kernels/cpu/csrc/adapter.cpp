#include "adapter.h"

#include <algorithm>
#include <stdexcept>

#include "formats.h"

namespace deepseek {
namespace {

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

}  // namespace

void LowRankSpec::add(const uint16_t* a, int a_bands, int cols, const uint16_t* b, int bands, int rank, int column,
                      bool alternate, float scale) {
  require(static_cast<int>(targets_.size()) < LowRank::kTargets, "an input has at most 3 updates");
  require(rank >= 1 && a_bands == (rank + kBand - 1) / kBand, "a must have the ranks of b, padded to 16");
  require(cols >= kGroup && cols % kGroup == 0 && (ranks_ == 0 || cols == cols_), "the columns of a must be padded to 32");
  require(bands >= 1 && column >= 0 && column % kBand == 0, "the first column must be a multiple of 16");
  require(!alternate || column == 0 || column == 2 * kBand, "alternating matrices begin at 0 or 32");
  const size_t a_size = static_cast<size_t>(a_bands) * cols * kBand, b_size = static_cast<size_t>(bands) * rank * kBand;
  targets_.push_back({{ranks_, rank, column, bands, alternate, nullptr, scale}, {b, b + b_size}});
  a_.insert(a_.end(), a, a + a_size);
  cols_ = cols;
  ranks_ += a_bands * kBand;
}

void LowRankSpec::check(int columns, int inputs) const {
  if (ranks_ == 0) return;
  require(columns > 0, "this layer has no such matrix");
  require(gain_.empty() || static_cast<int>(gain_.size()) == columns, "gains must be one for each output");
  require(cols_ == inputs, "an update has another number of inputs than its matrix");
  for (const Target& t : targets_) {
    const int last = t.plain.band(t.plain.bands - 1);
    require((last + 1) * kBand <= columns, "an update has more outputs than its matrix");
  }
}

LowRank LowRankSpec::plain() const {
  LowRank result{};
  result.ranks = ranks_;
  result.cols = cols_;
  result.a = a_.data();
  result.gain = gain_.empty() ? nullptr : gain_.data();
  for (const Target& t : targets_) {
    result.targets[result.count] = t.plain;
    result.targets[result.count++].b = t.b.data();
  }
  return result;
}

size_t LowRankSpec::bytes() const {
  size_t elements = a_.size() + 2 * gain_.size();
  for (const Target& t : targets_) elements += t.b.size();
  return elements * sizeof(uint16_t);
}

Adapter::Adapter(std::vector<AdapterLayerSpec> layers) : specs_(std::move(layers)) {
  for (const AdapterLayerSpec& spec : specs_) {
    layers_.push_back({spec.qkv.plain(), spec.output.plain(), spec.gate_up.plain(), spec.down.plain()});
    for (const LowRankSpec* update : {&spec.qkv, &spec.output, &spec.gate_up, &spec.down}) {
      ranks_ = std::max(ranks_, update->plain().ranks);
      bytes_ += update->bytes();
    }
  }
}

}  // namespace deepseek

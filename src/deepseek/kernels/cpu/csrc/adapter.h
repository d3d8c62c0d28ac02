// Owners of an adapter's matrices, as Python packs them.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "model.h"

namespace deepseek {

// The updates of one input's matrices.
class LowRankSpec {
 public:
  // One target. `a` is [ranks / 16][cols][16], `b` is [bands][rank][16], both fp16. The first output column is a multiple
  // of 16; of matrices that alternate (gate and up) it is 0 or 32. Throws std::invalid_argument for sizes that do not fit
  // each other.
  void add(const uint16_t* a, int a_bands, int cols, const uint16_t* b, int bands, int rank, int column, bool alternate,
           float scale);
  // What the matrices' own outputs are multiplied with, [outputs padded], in the order of their bands.
  void set_gain(std::vector<float> gain) { gain_ = std::move(gain); }
  // Throws std::invalid_argument for an update that does not fit `columns` outputs (0: none is allowed) and `inputs`.
  void check(int columns, int inputs) const;
  // Points into this object.
  LowRank plain() const;
  size_t bytes() const;

 private:
  struct Target {
    LowRank::Target plain;
    std::vector<uint16_t> b;
  };
  std::vector<uint16_t> a_;
  std::vector<float> gain_;
  std::vector<Target> targets_;
  int ranks_ = 0, cols_ = 0;
};

struct AdapterLayerSpec {
  LowRankSpec qkv, output, gate_up, down;
};

// Rows [begin, end) of a step, to be computed with an adapter.
struct AdapterRows {
  int adapter, begin, end;
};

class Adapter {
 public:
  explicit Adapter(std::vector<AdapterLayerSpec> layers);
  Adapter(const Adapter&) = delete;

  const AdapterLayer* layers() const { return layers_.data(); }
  int ranks() const { return ranks_; }  // the most of one input
  size_t bytes() const { return bytes_; }

 private:
  std::vector<AdapterLayerSpec> specs_;
  std::vector<AdapterLayer> layers_;
  int ranks_ = 0;
  size_t bytes_ = 0;
};

}  // namespace deepseek

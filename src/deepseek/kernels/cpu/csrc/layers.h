// Owners of what mixture-of-experts and latent-attention layers compute with, as Python describes them.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arena.h"
#include "matrix.h"
#include "model.h"

namespace deepseek {

struct LinearSpec {
  std::vector<MatrixPtr> parts;
  std::vector<float> bias;  // empty: none

  // Pads the bias; the result points into this object. Throws std::invalid_argument for too many parts.
  Linear plain();
};

struct ExpertsSpec {
  ExpertsSpec() = default;
  ExpertsSpec(const ExpertsSpec&) = delete;

  Routing routing{};
  std::vector<float> router;  // [experts][hidden]
  std::vector<float> bias;    // [experts], or empty
  std::vector<MatrixPtr> gate_up, down;
  int inner = 0, activation = 0;

  // The layer as plain data, which points into this object. Throws std::invalid_argument where the parts do not fit
  // each other.
  const Experts* plain(int hidden);

 private:
  Experts plain_{};
  std::vector<float> router_;  // padded
  std::vector<Matrix> gate_up_, down_;
};

struct LatentSpec {
  LatentSpec() = default;
  LatentSpec(const LatentSpec&) = delete;

  LinearSpec query_down, query, down;
  std::vector<float> query_norm, norm;
  float eps = 0;
  std::vector<MatrixPtr> key_up, value_up;  // per head
  int nope = 0, rope = 0, rank = 0, value_dim = 0;
  bool interleaved = false;

  const Latent* plain(int heads);

 private:
  Latent plain_{};
  std::vector<float> query_norm_;  // padded
  std::vector<Matrix> key_up_, value_up_;
};

// The most that any layer needs; zero: there is no such layer.
struct ExpertSizes {
  int experts = 0, top_k = 0, hidden = 0, inner = 0;
  bool packed = false, floats = false;

  void cover(const Experts& layer, int hidden_size);
  ExpertMemory lay_out(Arena& arena, int rows) const;
  bool operator==(const ExpertSizes& o) const {
    return experts == o.experts && top_k == o.top_k && hidden == o.hidden && inner == o.inner &&
           packed == o.packed && floats == o.floats;
  }
};

struct LatentSizes {
  int compressed = 0, query = 0, latent = 0, absorbed = 0, attended = 0;

  void cover(const Latent& layer, int heads);
  LatentMemory lay_out(Arena& arena, int rows) const;
  bool operator==(const LatentSizes& o) const {
    return compressed == o.compressed && query == o.query && latent == o.latent && absorbed == o.absorbed &&
           attended == o.attended;
  }
};

}  // namespace deepseek

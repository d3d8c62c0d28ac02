// Owners of a model's memory, as Python holds them.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "model.h"

namespace deepseek {

// The kernels for a name: "avx2", "avx512", "amx", or "auto" for the best that this processor runs. Throws
// std::invalid_argument for one that it does not run.
const Kernels& kernels_for(const std::string& isa);
// Those that it runs, best first.
std::vector<std::string> available_isas();

class PackedMatrix {
 public:
  PackedMatrix(Format format, int rows, int cols);
  PackedMatrix(const PackedMatrix&) = delete;

  Matrix matrix;
  size_t bytes() const { return memory_.bytes(); }

 private:
  Memory memory_;
};

using MatrixPtr = std::shared_ptr<PackedMatrix>;

// The workspace of the largest step so far.
class Buffers {
 public:
  struct Shape {
    int hidden, qkv, attended, inner;
    int rows, sequences;
    int threads;
    int groups;             // of the widest matrix
    size_t room_bytes;      // per thread
    int64_t scratch_floats;
  };
  // Makes room for `shape`; the result stays valid until the next call.
  const Workspace& fit(const Shape& shape);

 private:
  Memory memory_;
  Workspace work_{};
  Shape shape_{};
};

struct LinearSpec {
  std::vector<MatrixPtr> parts;
  std::vector<float> bias;  // empty: none
};

struct LayerSpec {
  std::vector<float> before_attention, after_attention, before_feed_forward, after_feed_forward;
  std::vector<float> query_norm, key_norm;
  float eps = 0, head_eps = 0;
  LinearSpec qkv, output, gate_up, down;
  int heads = 0, kv_heads = 0, head_dim = 0, window = 0, rotary = 0, inner = 0, activation = 0;
  float scale = 0;
};

// Keys and values of all layers.
class Cache {
 public:
  Cache(const std::vector<LayerSpec>& layers, int pages, int page_size, bool int8);
  std::vector<KvCache> layers;
  size_t bytes() const { return memory_.bytes(); }

 private:
  Memory memory_;
};

class Decoder {
 public:
  Decoder(const std::string& isa, int threads, int hidden, int vocab, MatrixPtr embedding, float embedding_scale,
          MatrixPtr head, std::vector<float> norm, float eps, float softcap, std::vector<LayerSpec> layers);

  std::shared_ptr<Cache> new_cache(int pages, int page_size, bool int8) const;
  // Tables of rotation `index`, [positions][half]; kept until replaced.
  void set_rotary(int index, std::vector<float> cos, std::vector<float> sin, int half);
  void forward(Step step, Cache& cache);
  const char* isa() const { return kernels_.name; }

 private:
  struct Table {
    std::vector<float> cos, sin;
  };
  Linear linear(const LinearSpec& spec) const;
  void sort_logits(Step& step);

  const Kernels& kernels_;
  int threads_;
  MatrixPtr embedding_, head_;
  std::vector<float> norm_;
  std::vector<LayerSpec> specs_;
  std::vector<Layer> layers_;
  std::vector<Rotary> rotaries_;
  std::vector<Table> tables_;
  Buffers buffers_;
  Buffers::Shape shape_{};
  Model model_{};
  std::vector<int64_t> logits_rows_;
  std::vector<int32_t> logits_to_;
};

}  // namespace deepseek

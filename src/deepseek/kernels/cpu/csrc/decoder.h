// Owners of a model's memory, as Python holds them.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "adapter.h"
#include "kernels.h"
#include "kv_store.h"
#include "layers.h"
#include "sparse_plan.h"

namespace deepseek {

// The kernels for a name: "avx2", "avx512", "amx", or "auto" for the best that this processor runs. Throws
// std::invalid_argument for one that it does not run.
const Kernels& kernels_for(const std::string& isa);
// Those that it runs, best first.
std::vector<std::string> available_isas();

// The workspace of the largest step so far.
class Buffers {
 public:
  struct Shape {
    int hidden = 0, qkv = 0, attended = 0, inner = 0;
    int rows = 0, sequences = 0;
    int threads = 1;
    int groups = 0;         // of the widest matrix
    size_t room_bytes = 0;  // per thread
    int64_t scratch_floats = 0;
    bool shadowed = false;  // some sparse rows are compared with dense attention
    int ranks = 0;          // the most that an adapter of the step has for one input
    ExpertSizes experts;
    LatentSizes latent;
  };
  // Makes room for `shape`; the result stays valid until the next call.
  const Workspace& fit(const Shape& shape);

 private:
  Memory memory_;
  Workspace work_{};
  Shape shape_{};
};

struct LayerSpec {
  std::vector<float> before_attention, after_attention, before_feed_forward, after_feed_forward;
  std::vector<float> query_norm, key_norm;
  float eps = 0, head_eps = 0;
  LinearSpec qkv, output;
  LinearSpec gate_up, down;              // next to experts: the shared ones, or without parts
  std::shared_ptr<LatentSpec> latent;    // instead of qkv, or null
  std::shared_ptr<ExpertsSpec> experts;  // or null
  int heads = 0, kv_heads = 0, head_dim = 0, window = 0, rotary = 0, inner = 0, activation = 0;
  float scale = 0;
};

// Keys and values, or latents, of all layers.
class Cache {
 public:
  // `indexed`: with an index for sparse attention, in layers without a window; pages have 64 tokens then.
  // Keys, values and latents of pages from `spill.resident` on lie in its file; scales and index stay in memory. Throws
  // std::invalid_argument, and std::system_error for a file that cannot be mapped.
  Cache(const std::vector<LayerSpec>& layers, int pages, int page_size, bool int8, bool indexed, const Spill& spill = {});
  std::vector<KvCache> layers;       // empty ones for latent layers, and the other way round
  std::vector<LatentCache> latents;
  size_t bytes() const { return memory_.bytes(); }
  size_t index_bytes() const { return index_bytes_; }
  KvStore& store() { return store_; }

 private:
  Memory memory_;
  KvStore store_;
  size_t index_bytes_ = 0;
};

class Decoder {
 public:
  Decoder(const std::string& isa, int threads, int hidden, int vocab, MatrixPtr embedding, float embedding_scale,
          MatrixPtr head, std::vector<float> norm, float eps, float softcap, std::vector<LayerSpec> layers);

  std::shared_ptr<Cache> new_cache(int pages, int page_size, bool int8, bool indexed, const Spill& spill) const;
  // Tables of rotation `index`, [positions][half]; kept until replaced.
  void set_rotary(int index, std::vector<float> cos, std::vector<float> sin, int half);
  // An adapter of this model, which may take part in steps from now on. Returns its number. Throws
  // std::invalid_argument for matrices that do not fit the layers.
  int add_adapter(std::vector<AdapterLayerSpec> layers);
  // Frees the memory of an adapter. Throws std::out_of_range if there is none of this number.
  void remove_adapter(int number);
  size_t adapter_bytes(int number) const { return adapters_.at(number)->bytes(); }
  // `wanted`: (adapter, first row, end) of each segment.
  void forward(Step step, Cache& cache, SparseWish wish, const std::vector<AdapterRows>& wanted = {});
  // Of all steps so far.
  const SparseStats& sparse_stats() const { return total_; }
  const char* isa() const { return kernels_.name; }

 private:
  struct Table {
    std::vector<float> cos, sin;
  };

  // The layer as plain data, which points into its description, and room for it in the workspace.
  Layer plain(LayerSpec& spec);
  Linear use(LinearSpec& spec);
  void sort_logits(Step& step);
  void choose_sparse(Step& step, const Cache& cache, const SparseWish& wish);
  void add_stats();
  void choose_adapters(Step& step, const std::vector<AdapterRows>& wanted, Buffers::Shape& shape);

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
  std::map<int, std::unique_ptr<Adapter>> adapters_;
  int next_adapter_ = 0;
  std::vector<Segment> segments_;
  std::vector<uint16_t> adapted_;
  std::vector<int64_t> logits_rows_;
  std::vector<int32_t> logits_to_;
  SparsePlan plan_;
  std::vector<SparseStats> stats_;
  SparseStats total_{};
  int64_t sparse_steps_ = 0;
};

}  // namespace deepseek

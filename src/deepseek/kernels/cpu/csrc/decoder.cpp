#include "decoder.h"

#include <algorithm>
#include <stdexcept>
#include <sys/syscall.h>
#include <unistd.h>

namespace deepseek {
namespace {

// Linux lends the tile registers on request, once per process and before threads use them.
bool request_tiles() {
  constexpr int kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

bool runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool runs_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}

bool runs_amx() {
  static const bool runs = [] {
    unsigned a = 7, b = 0, c = 0, d = 0;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    const bool tiles = (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1);
    return runs_avx512() && __builtin_cpu_supports("avx512bf16") && tiles && request_tiles();
  }();
  return runs;
}

std::vector<float> pad(std::vector<float> values, int to) {
  if (!values.empty()) values.resize(padded(static_cast<int>(values.size()), to), 0.0f);
  return values;
}

Workspace lay_out(Arena& arena, const Buffers::Shape& s) {
  Workspace w{};
  w.hidden_ld = padded(s.hidden, kGroup);
  w.qkv_ld = padded(s.qkv, kGroup);
  w.attended_ld = padded(s.attended, kGroup);
  w.inner_ld = padded(s.inner, kGroup);
  const size_t rows = s.rows;
  w.residual = arena.take<float>(rows * w.hidden_ld);
  w.normed = arena.take<float>(rows * w.hidden_ld);
  w.sublayer = arena.take<float>(rows * w.hidden_ld);
  w.qkv = arena.take<float>(rows * w.qkv_ld);
  w.attended = arena.take<float>(rows * w.attended_ld);
  w.shadow_ld = padded(std::max(s.attended, s.latent.attended), kGroup);
  w.shadow = arena.take<float>(s.shadowed ? rows * w.shadow_ld : 0);
  w.inner = arena.take<float>(rows * w.inner_ld);
  w.low_rank_ld = s.ranks;
  w.low_rank = arena.take<float>(rows * s.ranks);
  w.shift = arena.take<float>(s.ranks ? rows * 2 * w.inner_ld : 0);
  w.input = take_rows(arena, s.rows, w.hidden_ld);
  w.attended_rows = take_rows(arena, s.rows, w.attended_ld);
  w.inner_rows = take_rows(arena, s.rows, w.inner_ld);
  w.experts = s.experts.lay_out(arena, s.rows);
  w.latent = s.latent.lay_out(arena, s.rows);
  w.attention = {arena.take<float>(s.scratch_floats), s.scratch_floats};
  w.rooms = arena.take<uint8_t>(s.room_bytes * s.threads);
  w.room_bytes = s.room_bytes;
  return w;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  if (runs_amx()) names.push_back("amx");
  if (runs_avx512()) names.push_back("avx512");
  if (runs_avx2()) names.push_back("avx2");
  return names;
}

const Kernels& kernels_for(const std::string& isa) {
  const std::vector<std::string> names = available_isas();
  if (names.empty()) throw std::invalid_argument("this processor has no AVX2");
  const std::string chosen = isa == "auto" ? names.front() : isa;
  if (std::find(names.begin(), names.end(), chosen) == names.end()) {
    throw std::invalid_argument("this processor does not run the instruction set '" + chosen + "'");
  }
  if (chosen == "amx") return kernels_amx();
  return chosen == "avx512" ? kernels_avx512() : kernels_avx2();
}

const Workspace& Buffers::fit(const Shape& s) {
  const bool fits = s.hidden == shape_.hidden && s.qkv == shape_.qkv && s.attended == shape_.attended &&
                    s.inner == shape_.inner && s.experts == shape_.experts && s.latent == shape_.latent && s.rows <= shape_.rows && s.ranks <= shape_.ranks &&
                    s.room_bytes <= shape_.room_bytes &&
                    s.scratch_floats <= shape_.scratch_floats && s.threads <= shape_.threads && s.shadowed <= shape_.shadowed;
  if (fits) return work_;
  Arena count(nullptr);
  lay_out(count, s);
  memory_ = Memory(count.used());
  Arena arena(memory_.as<char>());
  work_ = lay_out(arena, s);
  shape_ = s;
  return work_;
}

Cache::Cache(const std::vector<LayerSpec>& specs, int pages, int page_size, bool int8, bool indexed, const Spill& spill)
    : store_(pages, spill) {
  if (indexed && page_size != kIndexTokens) throw std::invalid_argument("an index needs pages of 64 tokens");
  for (const LayerSpec& spec : specs) {
    if (spec.latent && int8) throw std::invalid_argument("latent caches are fp16");
  }
  // An array of `count` elements per page that the store knows of.
  const auto take = [&](Arena& arena, auto type, size_t count, bool spilled) {
    using T = decltype(type);
    const size_t edge = spilled ? store_.alignment() : 1, gap = edge > 1 ? edge - 1 : 0;
    char* base = arena.take<char>(static_cast<size_t>(pages) * count * sizeof(T) + 2 * gap);
    if (base) base += (edge - reinterpret_cast<uintptr_t>(base) % edge) % edge;
    store_.add({base, count * sizeof(T), spilled});
    return reinterpret_cast<T*>(base);
  };
  const auto index_of = [&](Arena& arena, int kv_heads, int key_dim, int value_dim) {
    PageIndex index;
    if (!indexed || key_dim > kMaxIndexedDim) return index;
    index.pages = pages;
    index.kv_heads = kv_heads;
    index.key_dim = key_dim;
    index.value_dim = value_dim;
    const size_t entries = static_cast<size_t>(pages) * kv_heads;
    index_bytes_ += entries * (index.key_bytes() + index.value_bytes() + index.code_bytes());
    const auto take_heads = [&](size_t bytes) {
      char* base = arena.take<char>(entries * bytes);
      for (int head = 0; head < kv_heads; ++head) store_.add({base + static_cast<size_t>(head) * pages * bytes, bytes, false});
      return base;
    };
    index.keys = take_heads(index.key_bytes());
    index.values = take_heads(index.value_bytes());
    index.codes = reinterpret_cast<uint8_t*>(take_heads(index.code_bytes()));
    return index;
  };
  auto lay_out = [&](Arena& arena) {
    layers.clear();
    latents.clear();
    store_.clear();
    index_bytes_ = 0;
    for (const LayerSpec& spec : specs) {
      latents.push_back({});
      if (spec.latent) {
        const int rank = spec.latent->rank, rope = spec.latent->rope;
        latents.back() = {rank, rope, page_size, take(arena, uint16_t{}, static_cast<size_t>(page_size) * (rank + rope), true), {}};
        latents.back().index = index_of(arena, 1, rank + rope, rank);
        layers.push_back({});
        continue;
      }
      const size_t tokens = static_cast<size_t>(spec.kv_heads) * page_size;  // of a page, in all heads
      KvCache cache{spec.kv_heads, spec.head_dim, spec.head_dim, page_size, int8, nullptr, nullptr, nullptr, nullptr, {}};
      const size_t size = int8 ? 1 : 2;
      cache.keys = take(arena, char{}, tokens * spec.head_dim * size, true);
      cache.values = take(arena, char{}, tokens * spec.head_dim * size, true);
      if (int8) {
        cache.key_scales = take(arena, float{}, tokens, false);
        cache.value_scales = take(arena, float{}, tokens, false);
      }
      if (spec.window == 0) cache.index = index_of(arena, spec.kv_heads, spec.head_dim, spec.head_dim);
      layers.push_back(cache);
    }
  };
  Arena count(nullptr);
  lay_out(count);
  memory_ = Memory(count.used());
  Arena arena(memory_.as<char>());
  lay_out(arena);
  store_.map();
}

Decoder::Decoder(const std::string& isa, int threads, int hidden, int vocab, MatrixPtr embedding, float embedding_scale,
                 MatrixPtr head, std::vector<float> norm, float eps, float softcap, std::vector<LayerSpec> layers)
    : kernels_(kernels_for(isa)),
      threads_(threads),
      embedding_(std::move(embedding)),
      head_(std::move(head)),
      norm_(pad(std::move(norm), kGroup)),
      specs_(std::move(layers)) {
  shape_.hidden = hidden;
  shape_.threads = threads;
  shape_.groups = head_->matrix.groups;
  int rotaries = 1;
  for (LayerSpec& spec : specs_) {
    layers_.push_back(plain(spec));
    rotaries = std::max(rotaries, spec.rotary + 1);
  }
  shape_.room_bytes = kernels_.room_bytes(shape_.groups);
  rotaries_.resize(rotaries);
  tables_.resize(rotaries);
  model_ = {hidden,  vocab,          embedding_->matrix,
            embedding_scale, head_->matrix, Norm{norm_.data(), eps},
            softcap, static_cast<int>(layers_.size()), layers_.data(), rotaries_.data(), nullptr, nullptr};
}

Layer Decoder::plain(LayerSpec& s) {
  auto padded_norm = [](std::vector<float>& weights, float eps) {
    weights = pad(std::move(weights), kGroup);
    return Norm{weights.empty() ? nullptr : weights.data(), eps};
  };
  Layer layer{};
  layer.before_attention = padded_norm(s.before_attention, s.eps);
  layer.after_attention = padded_norm(s.after_attention, s.eps);
  layer.before_feed_forward = padded_norm(s.before_feed_forward, s.eps);
  layer.after_feed_forward = padded_norm(s.after_feed_forward, s.eps);
  layer.query_norm = {s.query_norm.empty() ? nullptr : s.query_norm.data(), s.head_eps};
  layer.key_norm = {s.key_norm.empty() ? nullptr : s.key_norm.data(), s.head_eps};
  layer.heads = s.heads;
  layer.kv_heads = s.kv_heads;
  layer.head_dim = s.head_dim;
  layer.scale = s.scale;
  layer.window = s.window;
  layer.rotary = s.rotary;
  layer.inner = s.inner;
  layer.activation = s.activation;
  layer.output = use(s.output);
  int attended = s.heads * s.head_dim;
  if (s.latent) {
    layer.latent = s.latent->plain(s.heads);
    attended = s.heads * s.latent->value_dim;
    shape_.latent.cover(*layer.latent, s.heads);
    if (!s.latent->query_down.parts.empty()) use(s.latent->query_down);
    use(s.latent->query);
    use(s.latent->down);
  } else {
    layer.qkv = use(s.qkv);
  }
  if (s.experts) {
    layer.experts = s.experts->plain(shape_.hidden);
    shape_.experts.cover(*layer.experts, shape_.hidden);
    shape_.groups = std::max(shape_.groups, std::max(shape_.experts.hidden, shape_.experts.inner) / kGroup);
  }
  if (!s.gate_up.parts.empty()) {
    layer.gate_up = s.gate_up.parts[0]->matrix;
    layer.gate_up_bias = use(s.gate_up).bias;
    layer.down = use(s.down);
  } else if (!s.experts) {
    throw std::invalid_argument("a layer without experts needs gate_up and down");
  }
  shape_.qkv = std::max(shape_.qkv, layer.qkv.columns);
  shape_.attended = std::max(shape_.attended, attended);
  shape_.inner = std::max(shape_.inner, padded(s.inner, kGroup));
  return layer;
}

Linear Decoder::use(LinearSpec& spec) {
  for (const MatrixPtr& part : spec.parts) shape_.groups = std::max(shape_.groups, part->matrix.groups);
  return spec.plain();
}

std::shared_ptr<Cache> Decoder::new_cache(int pages, int page_size, bool int8, bool indexed, const Spill& spill) const {
  return std::make_shared<Cache>(specs_, pages, page_size, int8, indexed, spill);
}

void Decoder::set_rotary(int index, std::vector<float> cos, std::vector<float> sin, int half) {
  Table& table = tables_.at(index);
  table.cos = std::move(cos);
  table.sin = std::move(sin);
  rotaries_[index] = {table.cos.data(), table.sin.data(), half};
}

// Narrow rows first, as in the step itself.
void Decoder::sort_logits(Step& step) {
  step.logits_to = nullptr;
  step.narrow_logits = 0;
  const auto row = [&](int i) { return step.logits_rows ? step.logits_rows[i] : i; };
  bool sorted = true;
  for (int i = 0; i < step.num_logits; ++i) {
    const bool narrow = row(i) < step.narrow_rows;
    sorted = sorted && (!narrow || step.narrow_logits == i);
    step.narrow_logits += narrow;
  }
  if (sorted) return;
  logits_rows_.clear();
  logits_to_.clear();
  for (const bool narrow : {true, false}) {
    for (int i = 0; i < step.num_logits; ++i) {
      if ((row(i) < step.narrow_rows) != narrow) continue;
      logits_rows_.push_back(row(i));
      logits_to_.push_back(i);
    }
  }
  step.logits_rows = logits_rows_.data();
  step.logits_to = logits_to_.data();
}

void Decoder::choose_sparse(Step& step, const Cache& cache, const SparseWish& wish) {
  stats_.assign(threads_, SparseStats{});
  if (cache.index_bytes() == 0) return;
  plan_.make(step.layout, wish);
  step.layout.skip = plan_.skip();
  step.layout.errors = plan_.errors();
  step.layout.stats = stats_.data();
  step.sparse = plan_.rows();
  step.dense = plan_.others();
  if (step.sparse.count > 0 && ++sparse_steps_ % kShadowInterval == 0) {
    const uint64_t turn = static_cast<uint64_t>(sparse_steps_ / kShadowInterval);
    step.shadow_layer = static_cast<int>((turn * 0x9e3779b97f4a7c15u >> 32) % layers_.size());  // in no order
  }
}

void Decoder::add_stats() {
  for (const SparseStats& own : stats_) total_ += own;
}

int Decoder::add_adapter(std::vector<AdapterLayerSpec> layers) {
  if (layers.size() != layers_.size()) throw std::invalid_argument("an adapter needs a description of each layer");
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers_[i];
    const int hidden = padded(shape_.hidden, kGroup), attended = padded(layer.heads * layer.head_dim, kGroup);
    const bool dense = layer.gate_up.data != nullptr && layer.experts == nullptr;
    layers[i].qkv.check(layer.latent ? 0 : layer.qkv.columns, hidden);
    layers[i].output.check(layer.latent ? 0 : layer.output.columns, attended);
    layers[i].gate_up.check(dense ? layer.gate_up.bands() * kBand : 0, hidden);
    layers[i].down.check(dense ? layer.down.columns : 0, padded(layer.inner, kGroup));
  }
  adapters_[next_adapter_] = std::make_unique<Adapter>(std::move(layers));
  return next_adapter_++;
}

void Decoder::remove_adapter(int number) {
  if (adapters_.erase(number) == 0) throw std::out_of_range("there is no such adapter");
}

void Decoder::choose_adapters(Step& step, const std::vector<AdapterRows>& wanted, Buffers::Shape& shape) {
  if (wanted.empty()) return;
  segments_.clear();
  adapted_.assign(step.rows, 0);
  int from = 0;
  for (const AdapterRows& rows : wanted) {
    const Adapter& adapter = *adapters_.at(rows.adapter);
    if (rows.begin < from || rows.end <= rows.begin || rows.end > step.rows) {
      throw std::invalid_argument("segments must be in order, without overlaps and inside of the step");
    }
    if (segments_.size() >= UINT16_MAX) throw std::invalid_argument("too many segments");
    from = rows.end;
    segments_.push_back({adapter.layers(), rows.begin, rows.end});
    std::fill(adapted_.begin() + rows.begin, adapted_.begin() + rows.end,
              static_cast<uint16_t>(segments_.size()));
    shape.ranks = std::max(shape.ranks, adapter.ranks());
  }
  step.num_segments = static_cast<int>(segments_.size());
  step.segments = segments_.data();
  step.adapted = adapted_.data();
}

void Decoder::forward(Step step, Cache& cache, SparseWish wish, const std::vector<AdapterRows>& wanted) {
  sort_logits(step);
  choose_sparse(step, cache, wish);
  Buffers::Shape shape = shape_;
  choose_adapters(step, wanted, shape);
  shape.rows = padded(std::max(step.rows, step.num_logits), 64);
  shape.sequences = padded(step.layout.num_sequences, 16);
  shape.shadowed = step.shadow_layer >= 0;
  const int choosing = padded(choosing_pages(step.layout), 64);
  for (size_t i = 0; i < cache.layers.size(); ++i) {
    const int heads = layers_[i].heads;
    const int64_t floats = layers_[i].latent
                               ? mla_scratch(shape.rows, shape.sequences, heads, cache.latents[i], choosing, threads_)
                               : kv_attention_scratch(shape.rows, shape.sequences, heads, cache.layers[i], choosing, threads_);
    shape.scratch_floats = std::max(shape.scratch_floats, floats);
    const PageIndex& index = layers_[i].latent ? cache.latents[i].index : cache.layers[i].index;
    if (step.sparse.count == 0 || index.codes == nullptr) continue;
    const int stride = layers_[i].latent ? kLatentStride : kKvStride;
    const int64_t sparse = sparse_scratch(step.sparse.count, step.sparse.pieces, heads, index.kv_heads, index.key_dim,
                                          index.value_dim, stride, threads_).total;
    shape.scratch_floats = std::max(shape.scratch_floats, sparse);
  }
  const Workspace& work = buffers_.fit(shape);
  model_.caches = cache.layers.data();
  model_.latents = cache.latents.data();
  kernels_.forward(model_, step, work, threads_);
  add_stats();
}

}  // namespace deepseek

#include "layers.h"

#include <algorithm>
#include <stdexcept>

namespace deepseek {
namespace {

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

std::vector<Matrix> plain(const std::vector<MatrixPtr>& owners) {
  std::vector<Matrix> matrices;
  for (const MatrixPtr& owner : owners) matrices.push_back(owner->matrix);
  return matrices;
}

void check_shapes(const std::vector<Matrix>& matrices, int count, int rows, int cols, const char* message) {
  require(static_cast<int>(matrices.size()) == count, message);
  for (const Matrix& m : matrices) require(m.rows == rows && m.cols == cols, message);
}

// Whether some matrix reads packed rows, and whether one reads floats; bf16 reads both.
bool any_packed(const std::vector<Matrix>& matrices) {
  return std::any_of(matrices.begin(), matrices.end(), [](const Matrix& m) { return m.format != Format::kFp16; });
}

bool any_floats(const std::vector<Matrix>& matrices) {
  return std::any_of(matrices.begin(), matrices.end(), [](const Matrix& m) { return is_float(m.format); });
}

}  // namespace

uint8_t* Pool::take(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (pieces_.empty() || used_ + bytes > pieces_.back().bytes()) {
    pieces_.emplace_back(std::max(bytes, kPiece));
    used_ = 0;
  }
  uint8_t* result = pieces_.back().as<uint8_t>() + used_;
  used_ += bytes;
  return result;
}

PackedMatrix::PackedMatrix(Format format, int rows, int cols, std::shared_ptr<Pool> pool) : pool_(std::move(pool)) {
  const bool blocks = format == Format::kQ4K || format == Format::kQ6K;
  require(rows >= 1 && cols >= 1, "a matrix needs at least one row and one column");
  require(!blocks || cols % (kGroup * kSuper) == 0, "K-quants come in blocks of 256 columns");
  const int groups = padded(cols, kGroup) / kGroup;
  const size_t quants = band_quant_bytes(format, groups), band = quants + band_meta_bytes(format, groups);
  matrix = {format, rows, cols, groups, quants, (band + 63) / 64 * 64, nullptr};
  if (pool_ == nullptr) memory_ = Memory(bytes());
  matrix.data = pool_ ? pool_->take(bytes()) : memory_.as<uint8_t>();
}

Linear LinearSpec::plain() {
  Linear result{};
  require(!parts.empty() && parts.size() <= Linear::kParts, "1 to 4 matrices expected");
  for (const MatrixPtr& part : parts) {
    result.parts[result.count] = &part->matrix;
    result.offsets[result.count++] = result.columns;
    result.columns += part->matrix.bands() * kBand;
  }
  if (!bias.empty()) bias.resize(padded(static_cast<int>(bias.size()), 4 * kBand), 0.0f);
  result.bias = bias.empty() ? nullptr : bias.data();
  return result;
}

const Experts* ExpertsSpec::plain(int hidden) {
  const Routing& r = routing;
  require(r.experts >= 1 && r.experts <= kMaxExperts, "1 to 1024 experts expected");
  require(r.groups >= 1 && r.experts % r.groups == 0 && r.top_groups >= 1 && r.top_groups <= r.groups && r.top_k >= 1 &&
              r.top_k <= r.experts / r.groups * r.top_groups,
          "the routing asks for more experts than there are");
  gate_up_ = deepseek::plain(gate_up);
  down_ = deepseek::plain(down);
  const int wide = padded(inner, kGroup), ld = padded(hidden, kGroup);
  check_shapes(gate_up_, r.experts, 2 * wide, hidden, "gate and up of each expert must be [2 * inner padded, hidden]");
  check_shapes(down_, r.experts, hidden, inner, "down of each expert must be [hidden, inner]");
  require(static_cast<int>(router.size()) == r.experts * hidden, "the router must be [experts, hidden]");
  require(bias.empty() || static_cast<int>(bias.size()) == r.experts, "the router's bias must be [experts]");
  router_.assign(static_cast<size_t>(padded(r.experts, kRouterExperts)) * ld, 0.0f);
  for (int e = 0; e < r.experts; ++e) {
    std::copy_n(router.data() + static_cast<size_t>(e) * hidden, hidden, router_.data() + static_cast<size_t>(e) * ld);
  }
  plain_ = {r, router_.data(), bias.empty() ? nullptr : bias.data(), gate_up_.data(), down_.data(), wide, activation,
            any_packed(gate_up_), any_floats(gate_up_), any_packed(down_), any_floats(down_)};
  return &plain_;
}

const Latent* LatentSpec::plain(int heads) {
  require(rank % 16 == 0 && rope % 16 == 0 && value_dim % 16 == 0, "rank, rope and value_dim must be multiples of 16");
  key_up_ = deepseek::plain(key_up);
  value_up_ = deepseek::plain(value_up);
  check_shapes(key_up_, heads, rank, nope, "key_up of each head must be [rank, nope]");
  check_shapes(value_up_, heads, value_dim, rank, "value_up of each head must be [value_dim, rank]");
  require(!any_packed(key_up_) && !any_packed(value_up_), "key_up and value_up must be fp16");
  require(static_cast<int>(norm.size()) == rank, "the latent's norm must be [rank]");
  const int query_rank = static_cast<int>(query_norm.size());
  query_norm_ = query_norm;
  query_norm_.resize(padded(query_rank, kGroup), 0.0f);
  plain_ = {query_down.parts.empty() ? Linear{} : query_down.plain(), Norm{query_norm_.data(), eps}, query_rank,
            query.plain(), down.plain(), Norm{norm.data(), eps}, key_up_.data(), value_up_.data(),
            nope, rope, rank, value_dim, interleaved};
  return &plain_;
}

RowsMemory take_rows(Arena& arena, int rows, int ld) {
  const size_t padded_rows = padded(rows, 16), groups = ld / kGroup;
  RowsMemory r;
  r.ld = ld;
  r.groups = ld / kGroup;
  r.high = arena.take<int8_t>(padded_rows * ld);
  r.low = arena.take<int8_t>(padded_rows * ld);
  r.scale = arena.take<float>(padded_rows * groups);
  r.sum = arena.take<float>(padded_rows * groups);
  r.zero128 = arena.take<int32_t>(padded_rows * groups);
  r.zero32 = arena.take<int32_t>(padded_rows * groups * 2);
  r.wide = arena.take<uint16_t>(padded_rows * ld);
  return r;
}

void ExpertSizes::cover(const Experts& layer, int hidden_size) {
  experts = std::max(experts, layer.routing.experts);
  top_k = std::max(top_k, layer.routing.top_k);
  hidden = padded(hidden_size, kGroup);
  inner = std::max(inner, layer.inner);
  packed = packed || layer.packed || layer.packed_inner;
  floats = floats || layer.floats || layer.floats_inner;
}

ExpertMemory ExpertSizes::lay_out(Arena& arena, int rows) const {
  ExpertMemory m{};
  if (experts == 0) return m;
  const int choices = rows * top_k, sorted = choices + 15 * std::min(experts, choices);
  m.logits_ld = padded(experts, 16);
  m.hidden_ld = hidden;
  m.inner_ld = inner;
  m.logits = arena.take<float>(static_cast<size_t>(rows) * m.logits_ld);
  m.ids = arena.take<int32_t>(choices);
  m.weights = arena.take<float>(choices);
  m.position = arena.take<int32_t>(choices);
  m.counts = arena.take<int32_t>(experts);
  m.narrow = arena.take<int32_t>(experts);
  m.starts = arena.take<int32_t>(experts);
  m.input = take_rows(arena, packed ? sorted : 0, hidden);
  m.inner = take_rows(arena, packed ? sorted : 0, inner);
  m.x = arena.take<float>(floats ? static_cast<size_t>(sorted) * hidden : 0);
  m.gated = arena.take<float>(floats ? static_cast<size_t>(sorted) * inner : 0);
  m.output = arena.take<float>(static_cast<size_t>(sorted) * hidden);
  return m;
}

void LatentSizes::cover(const Latent& layer, int heads) {
  // Products read whole groups of columns, of the last head beyond its end.
  const int slack = kGroup;
  compressed = std::max(compressed, padded(layer.query_rank, kGroup));
  query = std::max(query, padded(layer.query.columns, kGroup) + slack);
  latent = std::max(latent, padded(layer.down.columns, kGroup));
  absorbed = std::max(absorbed, heads * (layer.rank + layer.rope));
  attended = std::max(attended, padded(heads * layer.rank, kGroup) + slack);
}

LatentMemory LatentSizes::lay_out(Arena& arena, int rows) const {
  const size_t n = rows;
  LatentMemory m{compressed, query, latent, absorbed, attended, nullptr, {}, nullptr, nullptr, nullptr, nullptr};
  if (latent == 0) return m;
  m.compressed = arena.take<float>(n * compressed);
  m.compressed_rows = take_rows(arena, rows, compressed);
  m.query = arena.take<float>(n * query);
  m.latent = arena.take<float>(n * latent);
  m.absorbed = arena.take<float>(n * absorbed);
  m.attended = arena.take<float>(n * attended);
  return m;
}

}  // namespace deepseek

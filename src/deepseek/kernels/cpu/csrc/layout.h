// What attention is told about a ragged batch, and how a layer's keys and values lie in memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace deepseek {

struct SparseStats;

// The same facts as deepseek.kernels.paging.PagedLayout. Sequence i owns rows query_starts[i] .. query_starts[i + 1] of
// the batch, which are the last tokens of its context of context_lens[i] tokens.
struct Layout {
  int num_sequences;
  int num_rows;
  int page_size;               // a multiple of 16
  const int32_t* query_starts;  // [num_sequences + 1]
  const int32_t* context_lens;  // [num_sequences]
  const int32_t* pages;         // [num_sequences][pages_stride]
  int pages_stride;
  const int64_t* write_slots;   // [num_rows]: page * page_size + offset
  const uint8_t* skip = nullptr;  // [num_sequences], or null: whose attention is computed elsewhere
  const float* errors = nullptr;  // [num_sequences], or null: of whose attention an error is allowed, 0: none
  SparseStats* stats = nullptr;   // per thread; with errors
};

constexpr int kIndexTokens = 64;  // pages that can be indexed have this size

// What is known of a full page and KV head before its tokens are read: keys are about mean + alpha_t * R^T sign(R(k_t - mean)),
// where R is the rotation of rotation.h. Of the values only the mean and how far they are from it.
struct KeySummary {
  float scale;        // of the int8 mean
  float alpha_scale;  // of the uint8 alphas
  float noise;        // mean squared error of a code, per dimension
  float variance;     // mean squared distance of a key from the mean, per dimension
};

struct ValueSummary {
  float scale;    // of the int8 mean
  float spread;   // mean squared distance of a value from the mean
  float longest;  // the largest norm of a value
  float square;       // squared norm of the mean
};

// The index of one layer, head by head: pages that follow one another are read from end to end. Null arrays: there is none.
//   keys   [kv_head][page] of KeySummary, int8 mean [key_dim]
//   values [kv_head][page] of ValueSummary, int8 mean [value_dim]
//   codes  [kv_head][page] of [key_dim / 8][64] bytes, a bit for each dimension, and uint8 alpha [64]. In a byte row, byte
//          2 i belongs to token i and byte 2 i + 1 to token 32 + i, so that sums of 16 bits come out in order.
struct PageIndex {
  char* keys = nullptr;
  char* values = nullptr;
  uint8_t* codes = nullptr;
  int pages = 0, kv_heads = 0, key_dim = 0, value_dim = 0;

  size_t key_bytes() const { return sizeof(KeySummary) + key_dim; }
  size_t value_bytes() const { return sizeof(ValueSummary) + value_dim; }
  size_t code_bytes() const { return static_cast<size_t>(key_dim / 8 + 1) * kIndexTokens; }
  size_t entry(int page, int head) const { return static_cast<size_t>(head) * pages + page; }

  const KeySummary& key(int page, int head) const {
    return *reinterpret_cast<const KeySummary*>(keys + entry(page, head) * key_bytes());
  }
  const ValueSummary& value(int page, int head) const {
    return *reinterpret_cast<const ValueSummary*>(values + entry(page, head) * value_bytes());
  }
  uint8_t* code(int page, int head) const { return codes + entry(page, head) * code_bytes(); }
};

static inline const int8_t* mean_of(const KeySummary& summary) { return reinterpret_cast<const int8_t*>(&summary + 1); }
static inline const int8_t* mean_of(const ValueSummary& summary) { return reinterpret_cast<const int8_t*>(&summary + 1); }

// One layer's cache. A page holds, per KV head, keys and values token by token, so that a single one can be read:
//   keys   [page][kv_head][page_size][key_dim]   fp16 or int8
//   values [page][kv_head][page_size][value_dim] fp16 or int8
// int8 has one fp32 scale per token and head: key_scales, value_scales [page][kv_head][page_size].
struct KvCache {
  int kv_heads;
  int key_dim;    // a multiple of 16
  int value_dim;  // a multiple of 16
  int page_size;
  bool int8;
  void* keys;
  void* values;
  float* key_scales;    // null for fp16
  float* value_scales;  // null for fp16
  PageIndex index;
};

// One layer's latent cache (MLA): per token the normalised latent and the rotated shared key, in fp16:
//   [page][page_size][rank + rope]
struct LatentCache {
  int rank;  // a multiple of 16
  int rope;  // a multiple of 16
  int page_size;
  uint16_t* rows;
  PageIndex index;  // values are the first `rank` elements of keys
};

}  // namespace deepseek

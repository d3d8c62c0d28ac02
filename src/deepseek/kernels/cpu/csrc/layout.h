// What attention is told about a ragged batch, and how a layer's keys and values lie in memory.
#pragma once
#include <cstdint>

namespace deepseek {

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
};

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
};

// One layer's latent cache (MLA): per token the normalised latent and the rotated shared key, in fp16:
//   [page][page_size][rank + rope]
struct LatentCache {
  int rank;  // a multiple of 16
  int rope;  // a multiple of 16
  int page_size;
  uint16_t* rows;
};

}  // namespace deepseek

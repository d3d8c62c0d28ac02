// The attention kernels as tables of functions, one table per instruction set, and the memory that they need.
//
// Functions with a team are called by all of its threads with the same arguments. Those marked "synchronises" begin and
// end with a barrier: what the team wrote before is seen, and the result is complete afterwards. The others only share
// their work out: the caller synchronises.
#pragma once
#include <cstdint>

#include "layout.h"
#include "team.h"

namespace deepseek {

// A context is attended to in partitions of at most this many tokens, at fixed positions, and the partial results are
// combined in order: the result of a query depends neither on the work split nor on the batch.
constexpr int kPartition = 256;
constexpr int kTileRows = 48;  // query rows (positions times heads of a group) of one task
constexpr int kScoreStride = kPartition + 16;
constexpr int kKvStride = 528;       // floats between the rows of a tile; 16 more than the largest head
constexpr int kLatentStride = 1040;  // likewise for a latent
constexpr int kMaxHeadDim = kKvStride - 16;
constexpr int kMaxLatentDim = kLatentStride - 16;
constexpr int64_t kPartialFloats = 1 << 20;  // room per thread for the partial results of split contexts

// One piece of attention: query rows [first_row, first_row + rows) of a sequence for one KV head, where row
// position * group + head counts positions from the sequence's first query; its partitions [first, last).
struct AttentionTask {
  int sequence, kv_head, first_row, rows;
  int first, last;
  int split;                  // number of the split tile it belongs to, or -1
  int tile_first, tile_last;  // the partitions of the whole tile
  int64_t partial;            // of a split tile: where its partial results begin, in floats
  int cost_bits;
};

// Memory of the caller, reused from call to call. See attention_scratch.
struct Scratch {
  float* floats;
  int64_t size;
};

// What a tile needs to choose among so many pages of its context.
static inline int64_t choosing_floats(int pages, int stride) {
  const int64_t padded = (pages + 63) / 64 * 64;
  return pages ? kTileRows * (2 * padded + 2 * stride + 32) + 7 * padded + 64 : 0;
}

static inline int choosing_pages(const Layout& layout) {
  int most = 0;
  for (int s = 0; layout.errors && s < layout.num_sequences; ++s) {
    if (layout.errors[s] > 0.0f && layout.context_lens[s] > most * layout.page_size) most = layout.context_lens[s] / layout.page_size;
  }
  return most;
}

struct AttentionScratchSize {
  int64_t tasks, splits, per_thread, total;  // counts; floats
};

// `rows` and `sequences` are the most that a batch can have; kv_heads is 1 for a latent cache; choosing_pages are those of the
// longest context of which tiles choose pages, or 0.
static inline AttentionScratchSize attention_scratch(int rows, int sequences, int heads, int kv_heads, int key_dim,
                                                     int value_dim, int page_size, int stride, int choosing_pages, int threads) {
  const int64_t group = heads / kv_heads;
  AttentionScratchSize size;
  size.splits = 4 * static_cast<int64_t>(threads) + 4;
  const int64_t least_rows = choosing_pages ? kTileRows / 4 : kTileRows;  // of a full tile
  size.tasks = kv_heads * (rows * group / least_rows + 2 * sequences) + 16 * static_cast<int64_t>(threads) + 32;
  size.per_thread = 3 * static_cast<int64_t>(kTileRows) * stride + kTileRows * kScoreStride +
                    static_cast<int64_t>(key_dim + value_dim) * page_size + 16 +
                    choosing_floats(choosing_pages, stride);
  const int64_t plan = size.tasks * static_cast<int64_t>(sizeof(AttentionTask) / 4 + 1) + size.splits + 64;
  size.total = plan + 128 + threads * (size.per_thread + kPartialFloats);
  return size;
}

static inline int64_t kv_attention_scratch(int rows, int sequences, int heads, const KvCache& cache, int choosing_pages, int threads) {
  return attention_scratch(rows, sequences, heads, cache.kv_heads, cache.key_dim, cache.value_dim, cache.page_size,
                           kKvStride, choosing_pages, threads)
      .total;
}

static inline int64_t mla_scratch(int rows, int sequences, int heads, const LatentCache& cache, int choosing_pages, int threads) {
  return attention_scratch(rows, sequences, heads, 1, cache.rank + cache.rope, cache.rank, cache.page_size,
                           kLatentStride, choosing_pages, threads)
      .total;
}

// Rotation of queries and keys. Row r of the batch turns by row positions[r] of the tables. Null tables: no rotation.
// Null weights: no norm.
struct Rotation {
  const int32_t* positions;  // [num_rows]
  const float* cos;          // [positions][half]
  const float* sin;
  int half;                 // pairs turned: the first 2 * half elements of a head
  bool interleaved;         // pairs (2i, 2i + 1), else (i, i + half)
  const float* query_norm;  // [head_dim], RMS norm per head before the rotation
  const float* key_norm;
  float eps;
};

struct SparseRows;
struct SparseStats;

struct AttentionKernels {
  // Turns heads [n_heads][ld] of one token in place.
  void (*rotate)(float* heads, int n_heads, int ld, const float* cos, const float* sin, int half, bool interleaved);
  // Stores rows of keys [num_rows][kv_heads * key_dim] and values at the layout's slots.
  void (*write_kv)(const KvCache& cache, const float* keys, int ld_keys, const float* values, int ld_values,
                   const Layout& layout, const Team& team);
  // Rows of [heads queries | kv_heads keys | kv_heads values]: norms and turns queries and keys in place, stores keys
  // and values. Queries have the keys' dimension.
  void (*rope_and_write)(float* qkv, int ld, int heads, const Rotation& rotation, const KvCache& cache,
                         const Layout& layout, const Team& team);
  // Causal attention of query rows [num_rows][heads][key_dim] -> out [num_rows][heads][value_dim]; ldq and ldo are the
  // floats from row to row. A window of w > 0 sees the last w tokens, the query's own included. Sequences whose rows begin at
  // `narrow_rows` or later may be computed in bf16 (num_rows: none). Synchronises.
  void (*attention)(const KvCache& cache, const float* q, int ldq, float* out, int ldo, int heads, float scale,
                    int window, const Layout& layout, int narrow_rows, const Scratch& scratch, const Team& team);
  // Attention in latent space: q [num_rows][heads][rank + rope] -> out [num_rows][heads][rank]. Synchronises.
  void (*mla_decode)(const LatentCache& cache, const float* q, int ldq, float* out, int ldo, int heads, float scale,
                     const Layout& layout, const Scratch& scratch, const Team& team);
  // Indexes the pages that the batch's rows have filled; for caches that have an index. Synchronises.
  void (*index_kv)(const KvCache& cache, const Layout& layout, const Scratch& scratch, const Team& team);
  void (*index_latents)(const LatentCache& cache, const Layout& layout, const Scratch& scratch, const Team& team);
  // Like `attention` and `mla_decode`, of the rows in `sparse` only; the layout's stats are added to. Synchronise.
  void (*sparse_attention)(const KvCache& cache, const float* q, int ldq, float* out, int ldo, int heads, float scale,
                           const Layout& layout, const SparseRows& sparse, const Scratch& scratch,
                           const Team& team);
  void (*sparse_mla)(const LatentCache& cache, const float* q, int ldq, float* out, int ldo, int heads, float scale,
                     const Layout& layout, const SparseRows& sparse, const Scratch& scratch,
                     const Team& team);
  // Stores rows [num_rows][rank + rope].
  void (*write_latent)(const LatentCache& cache, const float* rows, int ld, const Layout& layout, const Team& team);
};

const AttentionKernels& attention_avx2();
const AttentionKernels& attention_avx512();

}  // namespace deepseek

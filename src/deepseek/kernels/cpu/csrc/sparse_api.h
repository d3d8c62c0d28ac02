// Sparse attention of single query rows: what it is told, what it reports, and the memory that it needs.
#pragma once
#include "attention_api.h"

namespace deepseek {

// The middle of a context is worked on in pieces of this many pages, at fixed positions.
constexpr int kPiecePages = 64;
constexpr int kPieceTokens = kPiecePages * kIndexTokens;
constexpr int kRecentTokens = 256;  // always exact, like the first page and the page that is not full
constexpr int kShadowInterval = 64;  // steps from one comparison with dense attention to the next
constexpr int kMaxSparseRows = 16;  // of a sequence in one step
constexpr int kMaxIndexedDim = 1024;
constexpr int kExactTokens = kRecentTokens + 2 * kIndexTokens;  // the most that is always exact

// One query row that is attended to sparsely.
struct SparseRow {
  int row, sequence;
  int context;     // tokens that it sees, its own included
  float error;     // relative error of the output that is aimed at
  int first_piece;  // where its pieces begin among those of all rows

  // Pages [1, end) are the middle, all full.
  int middle_end() const {
    const int end = (context - kRecentTokens) / kIndexTokens;
    return end > 1 ? end : 1;
  }
  int middle_pieces() const { return (middle_end() - 1 + kPiecePages - 1) / kPiecePages; }
  int pieces() const { return middle_pieces() + 1; }  // the last one is the exact part
};

struct SparseRows {
  const SparseRow* rows;
  int count;
  int pieces;  // of all rows
  // What dense attention makes of the rows, to compare with, [rows of the batch][truth_ld]; or null.
  const float* truth = nullptr;
  int truth_ld = 0;
};

// Sums over the rows and query heads of one thread.
struct SparseStats {
  double heads;               // query heads attended to
  double context_tokens;      // that they could see, per row and KV head
  double read_tokens;         // whose keys and values were read, per row and KV head
  double bytes;               // of keys, values and index
  double dense_bytes;         // that dense attention would have read
  double dense_pieces;        // pieces of which everything was read because most of it was selected
  double pieces;
  double tail;                // estimated share of the weights that was not read
  double estimate;            // estimated relative error
  double bound;               // of the relative error, if the tail weighs at most twice what is estimated
  double checks;              // query heads compared with dense attention
  double error;               // their relative errors
  double violations;          // those whose error was above its bound
  double tile_pages;          // pages that tiles of prompts could choose from
  double tile_pages_read;

  SparseStats& operator+=(const SparseStats& o) {
    heads += o.heads;
    context_tokens += o.context_tokens;
    read_tokens += o.read_tokens;
    bytes += o.bytes;
    dense_bytes += o.dense_bytes;
    dense_pieces += o.dense_pieces;
    pieces += o.pieces;
    tail += o.tail;
    estimate += o.estimate;
    bound += o.bound;
    checks += o.checks;
    error += o.error;
    violations += o.violations;
    tile_pages += o.tile_pages;
    tile_pages_read += o.tile_pages_read;
    return *this;
  }
};

// Floats of scratch memory: per piece and query head a result, page masses and bins; per row and head a threshold; per
// thread its room. `dim` is the larger of key and value dimensions.
struct SparseScratchSize {
  int64_t result, piece, thread, total;
};

static inline SparseScratchSize sparse_scratch(int rows, int pieces, int heads, int kv_heads, int key_dim, int value_dim,
                                               int stride, int threads) {
  const int64_t group = heads / kv_heads, tokens = kPieceTokens + kExactTokens;
  SparseScratchSize size;
  size.result = 16 + value_dim;
  size.piece = group * (size.result + 3 * kPiecePages + kPieceTokens / 4) + 2;
  size.thread = group * (stride + 2 * key_dim + key_dim + kScoreStride + kIndexTokens + tokens + 64) +
                static_cast<int64_t>(kIndexTokens) * key_dim + 2 * tokens + 1024;
  size.total = 64 + static_cast<int64_t>(pieces) * kv_heads * size.piece + static_cast<int64_t>(rows) * heads * 4 +
               threads * (size.thread + 64);
  return size;
}

}  // namespace deepseek

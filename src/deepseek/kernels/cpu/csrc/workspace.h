// Memory of a step's intermediate results, allocated for the largest step so far.
#pragma once
#include <cstddef>
#include <cstdint>

#include "attention_api.h"

namespace deepseek {

struct RowsMemory {
  int8_t* high;
  int8_t* low;
  int ld;
  int groups;
  float* scale;
  float* sum;
  int32_t* zero128;
  int32_t* zero32;
  uint16_t* wide;
};

// A step's rows sorted by expert: those of one expert lie together, from a multiple of sixteen on.
struct ExpertMemory {
  int logits_ld, hidden_ld, inner_ld;
  float* logits;      // [rows][logits_ld]
  int32_t* ids;       // [rows][top_k]
  float* weights;     // [rows][top_k]
  int32_t* position;  // [rows][top_k]: the sorted row of a choice
  int32_t* counts;    // [experts]: its rows
  int32_t* narrow;    // [experts]: how many of them are narrow; these come first
  int32_t* starts;    // [experts]: its first sorted row
  RowsMemory input, inner;
  float* x;       // [sorted rows][hidden_ld]; null unless some expert has floating weights, like `gated`
  float* gated;   // [sorted rows][inner_ld]
  float* output;  // [sorted rows][hidden_ld]
};

// Between the projections of latent attention.
struct LatentMemory {
  int compressed_ld, query_ld, latent_ld, absorbed_ld, attended_ld;
  float* compressed;  // [rows][compressed_ld], of the low-rank query path
  RowsMemory compressed_rows;
  float* query;     // [rows][query_ld]
  float* latent;    // [rows][latent_ld]
  float* absorbed;  // [rows][heads * (rank + rope)], queries in latent space
  float* attended;  // [rows][heads * rank], results in latent space
};

// Leading dimensions are padded to whole groups of 32 columns; the padding stays zero.
struct Workspace {
  int hidden_ld, qkv_ld, attended_ld, inner_ld;
  float* residual;  // [rows][hidden_ld]
  float* normed;
  float* sublayer;
  float* qkv;       // [rows][qkv_ld]
  float* attended;  // [rows][attended_ld]
  float* shadow;    // [rows][shadow_ld]: what dense attention makes of rows that are sparse
  int shadow_ld;
  float* inner;     // [rows][inner_ld]
  float* low_rank;  // [rows][low_rank_ld], between the two matrices of an adapter
  int low_rank_ld;
  float* shift;     // [rows][2 * inner_ld], what adapters add to gate and up, in their order
  RowsMemory input, attended_rows, inner_rows;
  ExpertMemory experts;
  LatentMemory latent;
  Scratch attention;
  uint8_t* rooms;      // per thread, for unpacked weights
  size_t room_bytes;
};

}  // namespace deepseek

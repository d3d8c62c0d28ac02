// A decoder as plain data: what a step computes with. Built once from the layers of deepseek.models.
#pragma once
#include "formats.h"
#include "layout.h"

namespace deepseek {

// Matrices of one input, their outputs one after another (query and key may be stored in another format than value).
struct Linear {
  static constexpr int kParts = 4;
  int count;
  const Matrix* parts[kParts];
  int offsets[kParts];  // first output column; a multiple of 16
  const float* bias;    // [columns], or null
  int columns;          // of the output, padded
};

struct Norm {
  const float* weight;  // null: there is no such norm
  float eps;
};

struct Layer {
  Norm before_attention, after_attention, before_feed_forward, after_feed_forward;
  Linear qkv, output;
  Norm query_norm, key_norm;
  int heads, kv_heads, head_dim;
  float scale;
  int window;  // 0: none
  int rotary;
  Matrix gate_up;  // rows of 32 alternate
  const float* gate_up_bias;
  Linear down;
  int inner;
  int activation;
};

// cos and sin of the first `positions` positions, [positions][half].
struct Rotary {
  const float* cos;
  const float* sin;
  int half;
};

struct Model {
  int hidden;
  int vocab;
  Matrix embedding;
  float embedding_scale;
  Matrix head;
  Norm norm;
  float softcap;  // 0: none
  int num_layers;
  const Layer* layers;
  const Rotary* rotaries;
  KvCache* caches;
};

struct Step {
  int rows;
  int narrow_rows;  // the first so many; the others are wide (see rows.h)
  const int64_t* token_ids;
  const int32_t* positions;
  Layout layout;
  int num_logits;
  const int64_t* logits_rows;  // null: all rows; narrow ones first
  int narrow_logits;
  const int32_t* logits_to;    // which row of `logits` each goes to, or null: in order
  float* logits;               // [num_logits][vocab]
};

}  // namespace deepseek

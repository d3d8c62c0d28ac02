// A decoder as plain data: what a step computes with. Built once from the layers of deepseek.models.
#pragma once
#include "formats.h"
#include "layout.h"
#include "sparse_api.h"

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

// The low-rank updates that one adapter makes to the matrices of one input (LoRA: Hu et al. 2021, arXiv:2106.09685):
// y += B (A x) for each of them. Values are fp16, of magnitudes about 1; `scale` makes up for it.
struct LowRank {
  static constexpr int kTargets = 3;  // query, key and value; gate and up
  struct Target {
    int first_rank;     // among those of `a`
    int rank;           // columns of b
    int column;         // first output column, a multiple of 16
    int bands;          // of sixteen output columns
    bool alternate;     // its columns and another matrix's take turns of 32
    const uint16_t* b;  // [bands][rank][16]
    float scale;

    // The place among all output bands of an own one, and back; -1 for one that is another target's.
    int band(int own) const { return column / 16 + (alternate ? own / 2 * 4 + own % 2 : own); }
    int own_band(int band) const {
      const int i = band - column / 16;
      if (i < 0 || (alternate && i % 4 >= 2)) return -1;
      const int own = alternate ? i / 4 * 2 + i % 4 : i;
      return own < bands ? own : -1;
    }
  };
  int ranks;          // of all targets, each padded to sixteen; 0: there is no update
  int cols;           // padded to whole groups
  const uint16_t* a;  // [ranks / 16][cols][16]
  const float* gain;  // [outputs], what the matrix's own outputs are multiplied with (DoRA); null: nothing
  int count;
  Target targets[kTargets];
};

// An adapter's updates of a layer.
struct AdapterLayer {
  LowRank qkv, output, gate_up, down;
};

struct Norm {
  const float* weight;  // null: there is no such norm
  float eps;
};

constexpr int kMaxExperts = 1024;
constexpr int kRouterExperts = 4;  // that the router computes at once

// Which experts compute a token: the same facts as deepseek.layers.moe.Routing.
struct Routing {
  int experts, top_k;
  int groups, top_groups;  // one group: no limit
  bool sigmoid;            // of the router's logits, else softmax
  bool best_two;           // a group is as good as the sum of its two best experts, else as its best
  bool normalize;
  float scale;
};

// The routed experts of a layer. Shared experts are the layer's ordinary gate_up and down.
struct Experts {
  Routing routing;
  const float* router;    // [experts padded to 4][hidden padded]
  const float* bias;      // [experts], counts in the choice only; or null
  const Matrix* gate_up;  // [experts], rows of 32 alternate
  const Matrix* down;     // [experts]
  int inner;              // padded
  int activation;
  bool packed, floats;              // the forms of the input that some expert wants
  bool packed_inner, floats_inner;  // likewise for `down`
};

// Latent attention: what it needs beyond Layer's heads, scale, rotary and output.
struct Latent {
  Linear query_down;  // count 0: queries are projected directly
  Norm query_norm;
  int query_rank;
  Linear query;  // [heads][nope + rope]
  Linear down;   // [rank + rope]
  Norm norm;     // of the latent
  const Matrix* key_up;    // fp16, [heads] of [rank][nope]: takes a query into latent space
  const Matrix* value_up;  // fp16, [heads] of [value_dim][rank]
  int nope, rope, rank, value_dim;
  bool interleaved;
};

struct Layer {
  Norm before_attention, after_attention, before_feed_forward, after_feed_forward;
  Linear qkv, output;
  Norm query_norm, key_norm;
  int heads, kv_heads, head_dim;
  float scale;
  int window;  // 0: none
  int rotary;
  const Latent* latent;    // null: ordinary attention, of qkv
  const Experts* experts;  // null: dense
  Matrix gate_up;          // rows of 32 alternate; without data where there are only routed experts
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
  const KvCache* caches;       // per layer; that of a latent layer is empty
  const LatentCache* latents;  // per layer
};

// Rows [begin, end) of a step are computed with an adapter. Rows of no segment are the model's alone.
struct Segment {
  const AdapterLayer* layers;
  int begin, end;
};

// What rows of a step multiply the outputs of a matrix with.
struct RowGains {
  const Segment* segments;
  const uint16_t* adapted;
  int layer;
  LowRank AdapterLayer::*which;

  const float* of(int row) const {
    const int segment = adapted[row];
    return segment ? (segments[segment - 1].layers[layer].*which).gain : nullptr;
  }
};

struct Step {
  int rows;
  int narrow_rows;       // the first so many; the others are wide (see rows.h)
  int narrow_attention;  // likewise, in attention
  const int64_t* token_ids;
  const int32_t* positions;
  Layout layout;
  int num_logits;
  const int64_t* logits_rows;  // null: all rows; narrow ones first
  int narrow_logits;
  const int32_t* logits_to;    // which row of `logits` each goes to, or null: in order
  float* logits;               // [num_logits][vocab]
  int num_hidden;
  const int64_t* hidden_rows;  // whose hidden states behind the final norm are wanted
  float* hidden;               // [num_hidden][hidden padded to groups]
  SparseRows sparse{};         // rows of the sequences that `layout` skips
  const uint8_t* dense = nullptr;  // [num_sequences], all but those
  int num_segments = 0;            // in order, without overlaps
  const Segment* segments = nullptr;
  const uint16_t* adapted = nullptr;  // [rows], the number of the segment that has it, from 1 on; null without segments
  int num_vectors = 0;               // rows whose input is a given vector, not a token's
  const int64_t* vector_rows = nullptr;  // in order
  const float* vectors = nullptr;        // [num_vectors][hidden]
  int shadow_layer = -1;           // whose sparse rows are compared with dense attention, or -1
};

}  // namespace deepseek

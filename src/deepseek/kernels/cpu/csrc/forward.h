// One step of a decoder, run by all threads of a team in one parallel region.
#pragma once
#include "attention_api.h"
#include "low_rank.h"
#include "model.h"
#include "moe.h"
#include "norm.h"
#include "workspace.h"

namespace deepseek {
namespace DS_ISA {

// Which forms of an input the matrices want. With bf16 weights narrow rows are floats and wide ones are packed.
struct Wanted {
  bool packed, floats;
};

static inline Wanted wanted(const Matrix& m) { return {m.format != Format::kFp16, is_float(m.format)}; }

static inline Wanted wanted(const Linear& linear) {
  Wanted w{false, false};
  for (int i = 0; i < linear.count; ++i) {
    const Wanted part = wanted(*linear.parts[i]);
    w = {w.packed || part.packed, w.floats || part.floats};
  }
  return w;
}

static inline Wanted both(Wanted a, Wanted b) { return {a.packed || b.packed, a.floats || b.floats}; }

using Updates = LowRank AdapterLayer::*;  // of which matrices

struct Forward {
  const Model& model;
  const Step& step;
  const Workspace& work;
  const Team& team;
  Resources resources;
  const AttentionKernels& attention;

  int padded() const { return work.hidden_ld; }

  void embed() const {
    const Range rows = team.share(step.rows);
    for (int t = rows.begin; t < rows.end; ++t) {
      float* to = work.residual + static_cast<size_t>(t) * padded();
      dequantize_row(model.embedding, static_cast<int>(step.token_ids[t]), to);
      if (model.embedding_scale != 1.0f) {
        for (int k = 0; k < padded(); k += kLanes) store(to + k, mul(load(to + k), set1(model.embedding_scale)));
      }
    }
    for (int i = 0; i < step.num_vectors; ++i) {
      const int t = static_cast<int>(step.vector_rows[i]);
      if (t < rows.begin || t >= rows.end) continue;
      std::memcpy(work.residual + static_cast<size_t>(t) * padded(), step.vectors + static_cast<size_t>(i) * model.hidden,
                  sizeof(float) * model.hidden);
    }
  }

  const LowRank& update(const Segment& segment, const Layer& layer, Updates which) const {
    return segment.layers[&layer - model.layers].*which;
  }

  // Whether some adapter of this step multiplies these matrices' own outputs.
  bool gained(const Layer& layer, Updates which) const {
    for (int i = 0; i < step.num_segments; ++i) {
      if (update(step.segments[i], layer, which).gain) return true;
    }
    return false;
  }

  RowGains gains(const Layer& layer, Updates which) const {
    return {step.segments, step.adapted, static_cast<int>(&layer - model.layers), which};
  }

  // Whether an adapter of this step changes these matrices of the layer.
  bool adapted(const Layer& layer, Updates which) const {
    for (int i = 0; i < step.num_segments; ++i) {
      if (update(step.segments[i], layer, which).ranks) return true;
    }
    return false;
  }

  // The first half of the updates: this thread's share of the rows of x through the adapters' A.
  void shrink_own_rows(const Layer& layer, Updates which, const float* x, int ld) const {
    const Range share = team.share(step.rows);
    for (int i = 0; i < step.num_segments; ++i) {
      const Segment& segment = step.segments[i];
      const LowRank& low = update(segment, layer, which);
      const int begin = share.begin > segment.begin ? share.begin : segment.begin;
      const int end = share.end < segment.end ? share.end : segment.end;
      if (begin >= end) continue;
      for (int band = 0; band < low.ranks / 16; ++band) shrink(low, band, begin, end, x, ld, work.low_rank, work.low_rank_ld);
    }
  }

  // The same of rows that no thread has made alone. Synchronises at the end.
  void shrink_rows(const Layer& layer, Updates which, const float* x, int ld) const {
    if (!adapted(layer, which)) return;
    int total = 0;
    for (int i = 0; i < step.num_segments; ++i) total += shrink_units(step.segments[i], layer, which);
    const Range share = team.share(total);
    int at = 0;
    for (int i = 0; i < step.num_segments; ++i) {
      const Segment& segment = step.segments[i];
      const LowRank& low = update(segment, layer, which);
      const int units = shrink_units(segment, layer, which), bands = low.ranks / 16;
      const int first = share.begin > at ? share.begin - at : 0, last = share.end - at < units ? share.end - at : units;
      for (int unit = first; unit < last; ++unit) {
        const int begin = segment.begin + unit / bands * kLowRankRows;
        const int end = begin + kLowRankRows < segment.end ? begin + kLowRankRows : segment.end;
        shrink(low, unit % bands, begin, end, x, ld, work.low_rank, work.low_rank_ld);
      }
      at += units;
    }
    team.sync();
  }

  int shrink_units(const Segment& segment, const Layer& layer, Updates which) const {
    return (segment.end - segment.begin + kLowRankRows - 1) / kLowRankRows * (update(segment, layer, which).ranks / 16);
  }

  // The second half, of output bands [first, last): added to y, whose bands this thread has written.
  void expand_rows(const Layer& layer, Updates which, int first, int last, float* y, int ld) const {
    for (int i = 0; i < step.num_segments; ++i) {
      const Segment& segment = step.segments[i];
      expand(update(segment, layer, which), first, last, segment.begin, segment.end, work.low_rank, work.low_rank_ld, y, ld);
    }
  }

  Activations packed(const RowsMemory& rows) const { return view(rows, step.narrow_rows, resources.tiles); }

  // Norms of `count` rows of `from` (row i is from row index[i], or i), into the forms that the next matrix wants.
  void normalize(const Norm& norm, const float* from, const int64_t* index, int count, const Activations& rows,
                 Wanted want) const {
    const NormOutput out{want.packed ? &rows : nullptr, want.floats ? work.normed : nullptr, padded()};
    const Range share = team.share(count);
    for (int t = share.begin; t < share.end; ++t) {
      const float* x = from + static_cast<size_t>(index ? index[t] : t) * padded();
      norm_row(x, norm.weight, model.hidden, padded(), norm.eps, t, out);
    }
  }

  void linear(const Linear& linear, const Activations& rows, const float* x, int ld, float* y, int y_ld,
              bool accumulate, const RowGains* gains = nullptr) const {
    const Input in{&rows, x, ld};
    for (int i = 0; i < linear.count; ++i) {
      const int offset = linear.offsets[i];
      const Store sink{y + offset, y_ld, linear.bias ? linear.bias + offset : nullptr, accumulate, gains, offset};
      multiply(*linear.parts[i], in, step.rows, resources.room, sink, team);
    }
  }

  // The same with the updates of adapters, whose first half has been computed.
  void adapted_linear(const Layer& layer, Updates which, const Linear& linear, const Activations& rows, const float* x,
                      int ld, float* y, int y_ld, bool accumulate) const {
    const RowGains gains = this->gains(layer, which);
    this->linear(linear, rows, x, ld, y, y_ld, accumulate, gained(layer, which) ? &gains : nullptr);
    for (int i = 0; i < linear.count && step.num_segments; ++i) {
      const Range share = share_bands<Store>(*linear.parts[i], team);
      const int offset = linear.offsets[i] / kBand;
      expand_rows(layer, which, offset + share.begin, offset + share.end, y, y_ld);
    }
  }

  // Adds the result of a sub-layer to the residual, through its own norm where the model has one. The first half of adapters'
  // updates has been computed.
  void finish(const Layer& layer, Updates which, const Linear& out, const Norm& norm, const RowsMemory& rows,
              const float* x, int ld) const {
    if (norm.weight == nullptr) {
      adapted_linear(layer, which, out, packed(rows), x, ld, work.residual, padded(), true);
      team.sync();
      return;
    }
    adapted_linear(layer, which, out, packed(rows), x, ld, work.sublayer, padded(), false);
    team.sync();
    const Range share = team.share(step.rows);
    for (int t = share.begin; t < share.end; ++t) {
      float* from = work.sublayer + static_cast<size_t>(t) * padded();
      float* to = work.residual + static_cast<size_t>(t) * padded();
      norm_row(from, norm.weight, model.hidden, padded(), norm.eps, 0, NormOutput{nullptr, from, 0});
      for (int k = 0; k < padded(); k += kLanes) store(to + k, add(load(to + k), load(from + k)));
    }
    team.sync();
  }

  void attend(const Layer& layer, const KvCache& cache) const {
    const Activations input = packed(work.input);
    const Updates which = &AdapterLayer::qkv;
    normalize(layer.before_attention, work.residual, nullptr, step.rows, input,
              both(wanted(layer.qkv), {false, adapted(layer, which)}));
    shrink_own_rows(layer, which, work.normed, padded());
    team.sync();
    adapted_linear(layer, which, layer.qkv, input, work.normed, padded(), work.qkv, work.qkv_ld, false);
    team.sync();
    const Rotary& rotary = model.rotaries[layer.rotary];
    const Rotation rotation{step.positions,           rotary.cos,
                            rotary.sin,               rotary.half,
                            false,                    layer.query_norm.weight,
                            layer.key_norm.weight,    layer.query_norm.eps};
    attention.rope_and_write(work.qkv, work.qkv_ld, layer.heads, rotation, cache, step.layout, team);
    const bool sparse = step.sparse.count > 0 && layer.window == 0;
    if (cache.index.codes) attention.index_kv(cache, step.layout, work.attention, team);
    attention.attention(cache, work.qkv, work.qkv_ld, work.attended, work.attended_ld, layer.heads, layer.scale,
                        layer.window, tile_layout(layer), resources.tiles ? step.narrow_attention : step.rows, work.attention, team);
    if (sparse) {
      const SparseRows rows = shadowed(layer, [&](const Layout& layout, float* out, int ld) {
        attention.attention(cache, work.qkv, work.qkv_ld, out, ld, layer.heads, layer.scale, 0, layout, step.rows, work.attention, team);
      });
      attention.sparse_attention(cache, work.qkv, work.qkv_ld, work.attended, work.attended_ld, layer.heads, layer.scale,
                                 step.layout, rows, work.attention, team);
    }
    project_attended(layer);
  }

  // The sparse rows, in the layer of the step's comparison with what `dense(layout, out, ld)` makes of them.
  template <class Dense>
  SparseRows shadowed(const Layer& layer, const Dense& dense) const {
    SparseRows rows = step.sparse;
    if (&layer - model.layers != step.shadow_layer) return rows;
    Layout layout = step.layout;
    layout.skip = step.dense;
    layout.errors = nullptr;
    dense(layout, work.shadow, work.shadow_ld);
    rows.truth = work.shadow;
    rows.truth_ld = work.shadow_ld;
    return rows;
  }

  // For attention by tiles: a layer with a window is dense.
  Layout tile_layout(const Layer& layer) const {
    Layout layout = step.layout;
    if (layer.window > 0) {
      layout.skip = nullptr;
      layout.errors = nullptr;
    }
    return layout;
  }

  // What attention found, through the output projection, onto the residual.
  void project_attended(const Layer& layer) const {
    if (wanted(layer.output).packed) {
      const Activations rows = packed(work.attended_rows);
      const Range share = team.share(step.rows);
      for (int t = share.begin; t < share.end; ++t) {
        rows.put_row(t, work.attended + static_cast<size_t>(t) * work.attended_ld);
      }
    }
    shrink_own_rows(layer, &AdapterLayer::output, work.attended, work.attended_ld);
    if (wanted(layer.output).packed || adapted(layer, &AdapterLayer::output)) team.sync();
    finish(layer, &AdapterLayer::output, layer.output, layer.after_attention, work.attended_rows, work.attended,
           work.attended_ld);
  }

  // Latent attention, in mla_layer.h.
  void attend_latent(const Layer& layer, const LatentCache& cache) const;
  void write_latents(const Layer& layer, const LatentCache& cache) const;
  void absorb_queries(const Layer& layer) const;

  void feed_forward(const Layer& layer) const {
    const Updates which = &AdapterLayer::gate_up;
    normalize(layer.before_feed_forward, work.residual, nullptr, step.rows, packed(work.input),
              both(wanted(layer.gate_up), {false, adapted(layer, which)}));
    shrink_own_rows(layer, which, work.normed, padded());
    team.sync();
    gate_up(layer);
    team.sync();
    shrink_rows(layer, &AdapterLayer::down, work.inner, work.inner_ld);
    finish(layer, &AdapterLayer::down, layer.down, layer.after_feed_forward, work.inner_rows, work.inner, work.inner_ld);
  }

  // What adapters add to gate and up, of this thread's bands; null if they add nothing.
  const float* shift_gate_up(const Layer& layer) const {
    const Updates which = &AdapterLayer::gate_up;
    if (!adapted(layer, which)) return nullptr;
    const Range share = share_bands<Gate>(layer.gate_up, team);
    const int ld = 2 * work.inner_ld;
    for (int t = 0; t < step.rows; ++t) {
      if (!step.adapted[t]) continue;
      float* to = work.shift + static_cast<size_t>(t) * ld;
      std::memset(to + share.begin * kBand, 0, sizeof(float) * (share.end - share.begin) * kBand);
    }
    expand_rows(layer, which, share.begin, share.end, work.shift, ld);
    return work.shift;
  }

  void gate_up(const Layer& layer) const {
    const Activations rows = packed(work.input), inner = packed(work.inner_rows);
    const Wanted want = both(wanted(layer.down), {false, adapted(layer, &AdapterLayer::down)});
    const RowGains gains = this->gains(layer, &AdapterLayer::gate_up);
    const Gate sink{layer.activation, layer.gate_up_bias, want.packed ? &inner : nullptr,
                    want.floats ? work.inner : nullptr, work.inner_ld, shift_gate_up(layer), 2 * work.inner_ld, step.adapted,
                    gained(layer, &AdapterLayer::gate_up) ? &gains : nullptr};
    multiply(layer.gate_up, Input{&rows, work.normed, padded()}, step.rows, resources.room, sink, team);
  }

  // Routed experts, and shared ones where there are any, onto the residual.
  void mixture(const Layer& layer) const {
    const Experts& e = *layer.experts;
    const bool shared = layer.gate_up.data != nullptr;
    Wanted want{e.packed, true};  // the router reads floats
    if (shared) want = both(want, wanted(layer.gate_up));
    const Activations rows = packed(work.input);
    normalize(layer.before_feed_forward, work.residual, nullptr, step.rows, rows, want);
    team.sync();
    const ExpertStep experts{e, work.experts, Input{&rows, work.normed, padded()}, step.rows, resources, team};
    route(e, work.experts, work.normed, padded(), step.rows, team);
    experts.sort();
    experts.gate_up();
    if (shared) gate_up(layer);
    team.sync();
    experts.down();
    if (shared) linear(layer.down, packed(work.inner_rows), work.inner, work.inner_ld, work.residual, padded(), true);
    team.sync();
    experts.combine(work.residual, padded());
    team.sync();
  }

  void logits() const {
    if (step.num_logits == 0) return;
    const Activations rows = view(work.input, step.narrow_logits, resources.tiles);
    normalize(model.norm, work.residual, step.logits_rows, step.num_logits, rows, wanted(model.head));
    team.sync();
    const Logits sink{step.logits, step.logits_to, model.vocab, model.softcap};
    multiply(model.head, Input{&rows, work.normed, padded()}, step.num_logits, resources.room, sink, team);
  }

  void hidden() const {
    const Range share = team.share(step.num_hidden);
    for (int t = share.begin; t < share.end; ++t) {
      const float* x = work.residual + static_cast<size_t>(step.hidden_rows[t]) * padded();
      norm_row(x, model.norm.weight, model.hidden, padded(), model.norm.eps, t, NormOutput{nullptr, step.hidden, padded()});
    }
  }

  // Columns beyond the vocabulary are padding and are not stored.
  struct Logits {
    float* y;
    const int32_t* to;  // row of y, or null: the same
    int vocab;
    float softcap;
    static constexpr int kUnit = 1;

    void operator()(int band, int bands, int row0, int rows, const float* product, int stride) const {
      for (int b = 0; b < bands; ++b) {
        const int column = (band + b) * kBand, columns = vocab - column < kBand ? vocab - column : kBand;
        for (int i = 0; i < rows; ++i) {
          alignas(64) float values[kBand];
          Vec v = load(product + b * stride + i * 16);
          if (softcap != 0.0f) {  // cap * tanh(v / cap), tanh from e^-2|x|
            const Vec x = mul(v, set1(1.0f / softcap));
            const Vec e = exp(mul(x, set1(-2.0f)));
            v = mul(set1(softcap), sub(div(set1(2.0f), add(set1(1.0f), e)), set1(1.0f)));
          }
          float* out = y + static_cast<size_t>(to ? to[row0 + i] : row0 + i) * vocab + column;
          if (columns == kBand) {
            store(out, v);
          } else {
            store(values, v);
            for (int k = 0; k < columns; ++k) out[k] = values[k];
          }
        }
      }
    }
  };

  void run() const {
    embed();
    team.sync();
    for (int i = 0; i < model.num_layers; ++i) {
      const Layer& layer = model.layers[i];
      layer.latent ? attend_latent(layer, model.latents[i]) : attend(layer, model.caches[i]);
      layer.experts ? mixture(layer) : feed_forward(layer);
    }
    hidden();
    logits();
  }
};

}  // namespace DS_ISA
}  // namespace deepseek

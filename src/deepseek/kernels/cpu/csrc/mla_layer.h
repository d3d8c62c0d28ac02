// The attention of a latent layer (MLA): queries are taken into latent space ("absorbed"), attend to the cache of latents
// and come back as values. Prompts go the same way, so that chunks do not change a result.
#pragma once
#include "forward.h"

namespace deepseek {
namespace DS_ISA {

// x[0 .. dim) normed in place; dim is a multiple of 16.
static inline void norm_in_place(float* x, const Norm& norm, int dim) {
  const Vec by = set1(inverse_rms(x, dim, dim, norm.eps));
  for (int k = 0; k < dim; k += kLanes) store(x + k, mul(mul(load(x + k), by), load(norm.weight + k)));
}

// Norms and turns the latents of this thread's rows and stores them; norms the low-rank queries.
inline void Forward::write_latents(const Layer& layer, const LatentCache& cache) const {
  const Latent& l = *layer.latent;
  const LatentMemory& m = work.latent;
  const Wanted want = wanted(l.query);
  const Activations rows = packed(m.compressed_rows);
  const NormOutput out{want.packed ? &rows : nullptr, want.floats ? m.compressed : nullptr, m.compressed_ld};
  const Range share = team.share(step.rows);
  const Rotary& rotary = model.rotaries[layer.rotary];
  for (int t = share.begin; t < share.end; ++t) {
    float* latent = m.latent + static_cast<size_t>(t) * m.latent_ld;
    norm_in_place(latent, l.norm, l.rank);
    const size_t at = static_cast<size_t>(step.positions[t]) * rotary.half;
    attention.rotate(latent + l.rank, 1, l.rope, rotary.cos + at, rotary.sin + at, rotary.half, l.interleaved);
    if (l.query_down.count == 0) continue;
    const float* compressed = m.compressed + static_cast<size_t>(t) * m.compressed_ld;
    norm_row(compressed, l.query_norm.weight, l.query_rank, m.compressed_ld, l.query_norm.eps, t, out);
  }
  attention.write_latent(cache, m.latent, m.latent_ld, step.layout, team);  // the same share of rows
}

// Queries [nope | rope] of all heads -> [rank | rope turned].
inline void Forward::absorb_queries(const Layer& layer) const {
  const Latent& l = *layer.latent;
  const LatentMemory& m = work.latent;
  const int from_dim = l.nope + l.rope, to_dim = l.rank + l.rope;
  share_matrices(layer.heads, team, [&](int h) { return l.key_up[h].bands(); }, [](int) { return 1; },
              [&](int h, int first, int count) {
                const Store sink{m.absorbed + h * to_dim + first * kBand, m.absorbed_ld, nullptr, false};
                const Input in{nullptr, m.query + h * from_dim, m.query_ld};
                multiply(slice(l.key_up[h], first, count), in, step.rows, resources.room, sink, alone());
              });
  const Rotary& rotary = model.rotaries[layer.rotary];
  const Range share = team.share(step.rows * layer.heads);
  for (int i = share.begin; i < share.end; ++i) {
    const int t = i / layer.heads, h = i % layer.heads;
    float* to = m.absorbed + static_cast<size_t>(t) * m.absorbed_ld + h * to_dim + l.rank;
    std::memcpy(to, m.query + static_cast<size_t>(t) * m.query_ld + h * from_dim + l.nope, sizeof(float) * l.rope);
    const size_t at = static_cast<size_t>(step.positions[t]) * rotary.half;
    attention.rotate(to, 1, l.rope, rotary.cos + at, rotary.sin + at, rotary.half, l.interleaved);
  }
}

inline void Forward::attend_latent(const Layer& layer, const LatentCache& cache) const {
  const Latent& l = *layer.latent;
  const LatentMemory& m = work.latent;
  const bool direct = l.query_down.count == 0;
  const Activations input = packed(work.input);
  const Wanted want = both(wanted(direct ? l.query : l.query_down), wanted(l.down));
  normalize(layer.before_attention, work.residual, nullptr, step.rows, input, want);
  team.sync();
  linear(l.down, input, work.normed, padded(), m.latent, m.latent_ld, false);
  if (direct) {
    linear(l.query, input, work.normed, padded(), m.query, m.query_ld, false);
  } else {
    linear(l.query_down, input, work.normed, padded(), m.compressed, m.compressed_ld, false);
  }
  team.sync();
  write_latents(layer, cache);
  team.sync();
  if (!direct) {
    linear(l.query, packed(m.compressed_rows), m.compressed, m.compressed_ld, m.query, m.query_ld, false);
    team.sync();
  }
  absorb_queries(layer);
  if (cache.index.codes) attention.index_latents(cache, step.layout, work.attention, team);
  attention.mla_decode(cache, m.absorbed, m.absorbed_ld, m.attended, m.attended_ld, layer.heads, layer.scale,
                       step.layout, work.attention, team);
  if (step.sparse.count > 0) {
    const SparseRows rows = shadowed(layer, [&](const Layout& layout, float* out, int ld) {
      attention.mla_decode(cache, m.absorbed, m.absorbed_ld, out, ld, layer.heads, layer.scale, layout, work.attention, team);
    });
    attention.sparse_mla(cache, m.absorbed, m.absorbed_ld, m.attended, m.attended_ld, layer.heads, layer.scale,
                         step.layout, rows, work.attention, team);
  }
  share_matrices(layer.heads, team, [&](int h) { return l.value_up[h].bands(); }, [](int) { return 1; },
              [&](int h, int first, int count) {
                const Store sink{work.attended + h * l.value_dim + first * kBand, work.attended_ld, nullptr, false};
                const Input in{nullptr, m.attended + h * l.rank, m.attended_ld};
                multiply(slice(l.value_up[h], first, count), in, step.rows, resources.room, sink, alone());
              });
  team.sync();
  project_attended(layer);
}

}  // namespace DS_ISA
}  // namespace deepseek

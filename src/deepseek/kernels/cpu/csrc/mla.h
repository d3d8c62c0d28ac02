// Latent attention (MLA) in its absorbed form: all heads of a token score and sum the same latent row.
#pragma once
#include "attention_run.h"

namespace deepseek {
namespace DS_ISA {

struct LatentSource {
  static constexpr int kStride = kLatentStride;
  static constexpr bool kWide = false;
  const LatentCache& cache;
  int key_dim, value_dim, page_size;

  explicit LatentSource(const LatentCache& from)
      : cache(from), key_dim(from.rank + from.rope), value_dim(from.rank), page_size(from.page_size) {}

  const uint16_t* keys(int page, int) const { return cache.rows + static_cast<size_t>(page) * key_dim * page_size; }
  const uint16_t* values(int page, int head) const { return keys(page, head); }  // within longer rows: always converted
  int value_ld() const { return key_dim; }
  const float* key_scales(int, int) const { return nullptr; }
  const float* value_scales(int, int) const { return nullptr; }
  bool widen_values(int) const { return true; }
  void load_keys(int page, int next, int head, float* to) const {
    const uint16_t* from = keys(page, head);
    load_transposed(from, page_size, key_dim, keys(next, head) - from, to);
  }
  void load_values(int page, int head, float* to) const {
    const uint16_t* from = keys(page, head);
    for (int t = 0; t < page_size; ++t, from += key_dim, to += value_dim) {
      for (int d = 0; d < value_dim; d += kLanes) store(to + d, load_fp16(from + d));
    }
  }
};

static void mla_decode(const LatentCache& cache, const float* q, int ldq, float* out, int ldo, int heads, float scale,
                       const Layout& layout, const Scratch& scratch, const Team& team) {
  attend(LatentSource(cache), 1, QueryRows{q, ldq, out, ldo, heads, scale}, 0, layout, layout.num_rows, scratch, team);
}

static void write_latent(const LatentCache& cache, const float* rows, int ld, const Layout& layout, const Team& team) {
  const int dim = cache.rank + cache.rope;
  const Range own = team.share(layout.num_rows);
  for (int row = own.begin; row < own.end; ++row) {
    const int64_t slot = layout.write_slots[row];
    uint16_t* to = cache.rows + slot * dim;
    const float* from = rows + static_cast<int64_t>(row) * ld;
    for (int d = 0; d < dim; d += kLanes) store_fp16(to + d, load(from + d));
  }
}

}  // namespace DS_ISA
}  // namespace deepseek

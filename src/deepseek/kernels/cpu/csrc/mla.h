// Latent attention (MLA) in its absorbed form: all heads of a token score and sum the same latent row.
#pragma once
#include "attention_run.h"

namespace deepseek {
namespace DS_ISA {

// [8][from_ld] -> [8][to_ld], transposed.
static inline void transpose_8x8(const uint16_t* from, int from_ld, float* to, int to_ld) {
  __m128i a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * from_ld));
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      a[4 * i + 2 * j] = _mm_unpacklo_epi32(b[4 * i + j], b[4 * i + 2 + j]);
      a[4 * i + 2 * j + 1] = _mm_unpackhi_epi32(b[4 * i + j], b[4 * i + 2 + j]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + 2 * i * to_ld, _mm256_cvtph_ps(_mm_unpacklo_epi64(a[i], a[4 + i])));
    _mm256_storeu_ps(to + (2 * i + 1) * to_ld, _mm256_cvtph_ps(_mm_unpackhi_epi64(a[i], a[4 + i])));
  }
}

struct LatentSource {
  static constexpr int kStride = kLatentStride;
  static constexpr bool kWide = false;
  const LatentCache& cache;
  int key_dim, value_dim, page_size;

  explicit LatentSource(const LatentCache& from)
      : cache(from), key_dim(from.rank + from.rope), value_dim(from.rank), page_size(from.page_size) {}

  const uint16_t* keys(int page, int) const { return cache.rows + static_cast<size_t>(page) * key_dim * page_size; }
  const uint16_t* values(int page, int head) const { return keys(page, head); }  // not by rows: always converted
  const float* key_scales(int, int) const { return nullptr; }
  const float* value_scales(int, int) const { return nullptr; }
  bool widen(int blocks) const { return blocks > 2; }
  bool widen_values(int) const { return true; }
  void load_keys(int page, int head, float* to) const {
    const uint16_t* from = keys(page, head);
    for (int i = 0; i < key_dim * page_size; i += kLanes) store(to + i, load_fp16(from + i));
  }
  void load_values(int page, int head, float* to) const {
    const uint16_t* from = keys(page, head);
    for (int d = 0; d < value_dim; d += 8) {
      for (int t = 0; t < page_size; t += 8) {
        transpose_8x8(from + d * page_size + t, page_size, to + t * value_dim + d, value_dim);
      }
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
    uint16_t* to = cache.rows + slot / cache.page_size * dim * cache.page_size + slot % cache.page_size;
    uint16_t lanes[kLanes];
    for (int d = 0; d < dim; d += kLanes) {
      store_fp16(lanes, load(rows + static_cast<int64_t>(row) * ld + d));
      for (int i = 0; i < kLanes; ++i) to[static_cast<int64_t>(d + i) * cache.page_size] = lanes[i];
    }
  }
}

}  // namespace DS_ISA
}  // namespace deepseek

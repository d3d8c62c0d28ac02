// Causal grouped-query attention over a paged cache of keys and values.
#pragma once
#include "attention_run.h"

namespace deepseek {
namespace DS_ISA {

template <class T>
struct KvSource {
  static constexpr int kStride = kKvStride;
  static constexpr bool kWide = sizeof(T) == 2;  // int8 keys and values keep their fp32 products
  const KvCache& cache;
  int key_dim, value_dim, page_size;

  explicit KvSource(const KvCache& from)
      : cache(from), key_dim(from.key_dim), value_dim(from.value_dim), page_size(from.page_size) {}

  size_t block(int page, int head) const { return static_cast<size_t>(page) * cache.kv_heads + head; }
  const T* keys(int page, int head) const {
    return static_cast<const T*>(cache.keys) + block(page, head) * key_dim * page_size;
  }
  const T* values(int page, int head) const {
    return static_cast<const T*>(cache.values) + block(page, head) * value_dim * page_size;
  }
  int value_ld() const { return value_dim; }
  const float* key_scales(int page, int head) const {
    return sizeof(T) == 1 ? cache.key_scales + block(page, head) * page_size : nullptr;
  }
  const float* value_scales(int page, int head) const {
    return sizeof(T) == 1 ? cache.value_scales + block(page, head) * page_size : nullptr;
  }
  void load_keys(int page, int next, int head, float* to) const {
    const T* from = keys(page, head);
    load_transposed(from, page_size, key_dim, keys(next, head) - from, to);
  }
  // With several blocks of rows values are converted once for all of them.
  bool widen_values(int blocks) const { return blocks > 2; }
  void load_values(int page, int head, float* to) const {
    const T* from = values(page, head);
    for (int i = 0; i < value_dim * page_size; i += kLanes) store(to + i, load_any(from + i));
  }
};

static void attention(const KvCache& cache, const float* q, int ldq, float* out, int ldo, int heads, float scale,
                      int window, const Layout& layout, int narrow_rows, const Scratch& scratch, const Team& team) {
  const QueryRows rows{q, ldq, out, ldo, heads / cache.kv_heads, scale};
  if (cache.int8) {
    attend(KvSource<int8_t>(cache), cache.kv_heads, rows, window, layout, narrow_rows, scratch, team);
  } else {
    attend(KvSource<uint16_t>(cache), cache.kv_heads, rows, window, layout, narrow_rows, scratch, team);
  }
}

}  // namespace DS_ISA
}  // namespace deepseek

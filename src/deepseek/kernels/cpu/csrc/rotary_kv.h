// What happens to queries, keys and values between their projection and attention: norm, rotation, storing.
#pragma once
#include <cmath>

#include "attention_api.h"
#include "vec.h"

namespace deepseek {
namespace DS_ISA {

// Turns `count` <= 16 pairs: (a, b) -> (a cos - b sin, b cos + a sin). Short vectors go through the same operations as
// full ones.
static inline void rotate_lanes(float* a, float* b, const float* cos, const float* sin, int count, int step) {
  if (count == kLanes && step == 1) {
    const Vec x = load(a), y = load(b), c = load(cos), s = load(sin);
    store(a, fnma(y, s, mul(x, c)));
    store(b, fma(x, s, mul(y, c)));
    return;
  }
  float x[kLanes] = {}, y[kLanes] = {}, c[kLanes] = {}, s[kLanes] = {};
  for (int i = 0; i < count; ++i) {
    x[i] = a[i * step];
    y[i] = b[i * step];
    c[i] = cos[i];
    s[i] = sin[i];
  }
  rotate_lanes(x, y, c, s, kLanes, 1);
  for (int i = 0; i < count; ++i) {
    a[i * step] = x[i];
    b[i * step] = y[i];
  }
}

// Turns heads [n_heads][ld] of one token in place, the first 2 * half elements of each.
static void rotate(float* heads, int n_heads, int ld, const float* cos, const float* sin, int half, bool interleaved) {
  for (int h = 0; h < n_heads; ++h, heads += ld) {
    for (int i = 0; i < half; i += kLanes) {
      const int count = half - i < kLanes ? half - i : kLanes;
      if (interleaved) {
        rotate_lanes(heads + 2 * i, heads + 2 * i + 1, cos + i, sin + i, count, 2);
      } else {
        rotate_lanes(heads + i, heads + half + i, cos + i, sin + i, count, 1);
      }
    }
  }
}

// RMS norm of one head in place; dim is a multiple of 16.
static inline void norm_head(float* x, const float* weight, int dim, float eps) {
  Vec squares = zero();
  for (int d = 0; d < dim; d += kLanes) {
    const Vec v = load(x + d);
    squares = fma(v, v, squares);
  }
  const Vec scale = set1(1.0f / std::sqrt(reduce_add(squares) / static_cast<float>(dim) + eps));
  for (int d = 0; d < dim; d += kLanes) store(x + d, mul(mul(load(x + d), scale), load(weight + d)));
}

// One head of one token -> int8 [dim]. Returns the scale: largest magnitude / 127. NaN and infinity
// become the scale, so that they reach the queries that see this token.
static inline float store_quantized(const float* x, int dim, int8_t* to) {
  Vec largest = zero();
  for (int d = 0; d < dim; d += kLanes) largest = max_magnitude(largest, load(x + d));
  const float scale = reduce_max_magnitude(largest) / 127.0f;
  const Vec divisor = set1(scale == 0.0f ? 1.0f : scale);
  for (int d = 0; d < dim; d += kLanes) {
    store_int8(to + d, div(load(x + d), divisor));
  }
  return scale;
}

// One head of one token -> its row of keys or values, and for int8 its scale.
static inline void store_head(const KvCache& cache, const float* x, int dim, void* rows, float* scales, int64_t slot, int head) {
  const int64_t row = (slot / cache.page_size * cache.kv_heads + head) * cache.page_size + slot % cache.page_size;
  if (cache.int8) {
    scales[row] = store_quantized(x, dim, static_cast<int8_t*>(rows) + row * dim);
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(rows) + row * dim;
  for (int d = 0; d < dim; d += kLanes) store_fp16(to + d, load(x + d));
}

static inline void store_key(const KvCache& cache, int64_t slot, int head, const float* key) {
  store_head(cache, key, cache.key_dim, cache.keys, cache.key_scales, slot, head);
}

static inline void store_value(const KvCache& cache, int64_t slot, int head, const float* value) {
  store_head(cache, value, cache.value_dim, cache.values, cache.value_scales, slot, head);
}

// Calls visit(head, row) for this thread's share of heads x rows, head by head: the tokens of a page that a thread
// writes lie together.
template <class Visit>
static inline void share_heads(int heads, int rows, const Team& team, const Visit& visit) {
  const int64_t count = static_cast<int64_t>(heads) * rows;
  const int64_t end = count * (team.rank + 1) / team.size;
  for (int64_t i = count * team.rank / team.size; i < end; ++i) {
    visit(static_cast<int>(i / rows), static_cast<int>(i % rows));
  }
}

static void write_kv(const KvCache& cache, const float* keys, int ld_keys, const float* values, int ld_values,
                     const Layout& layout, const Team& team) {
  share_heads(2 * cache.kv_heads, layout.num_rows, team, [&](int head, int row) {
    const int64_t slot = layout.write_slots[row], at = row;
    if (head < cache.kv_heads) {
      store_key(cache, slot, head, keys + at * ld_keys + static_cast<int64_t>(head) * cache.key_dim);
    } else {
      const int own = head - cache.kv_heads;
      store_value(cache, slot, own, values + at * ld_values + static_cast<int64_t>(own) * cache.value_dim);
    }
  });
}

static void rope_and_write(float* qkv, int ld, int heads, const Rotation& rotation, const KvCache& cache,
                           const Layout& layout, const Team& team) {
  const int turned = heads + cache.kv_heads, dim = cache.key_dim;
  share_heads(turned + cache.kv_heads, layout.num_rows, team, [&](int head, int row) {
    const int64_t slot = layout.write_slots[row];
    float* own = qkv + static_cast<int64_t>(row) * ld;
    if (head >= turned) {
      const int index = head - turned;
      own += static_cast<int64_t>(turned) * dim + static_cast<int64_t>(index) * cache.value_dim;
      store_value(cache, slot, index, own);
      return;
    }
    own += static_cast<int64_t>(head) * dim;
    const float* weight = head < heads ? rotation.query_norm : rotation.key_norm;
    if (weight != nullptr) norm_head(own, weight, dim, rotation.eps);
    if (rotation.cos != nullptr) {
      const int64_t at = static_cast<int64_t>(rotation.positions[row]) * rotation.half;
      rotate(own, 1, dim, rotation.cos + at, rotation.sin + at, rotation.half, rotation.interleaved);
    }
    if (head >= heads) store_key(cache, slot, head - heads, own);
  });
}

}  // namespace DS_ISA
}  // namespace deepseek

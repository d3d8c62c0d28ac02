// Attention of wide query rows on the matrix unit: queries, keys, weights and values rounded to bf16, sums in fp32.
//
// As in attention_tile.h a row's numbers do not depend on the rows around it: what others see and it does not is multiplied
// by zero, which changes no sum. Only tokens of the row's own sequence are multiplied, those behind its context are zeroed.
#pragma once
#include "attention_tile.h"
#include "wide.h"

#ifdef __AMX_BF16__

namespace deepseek {
namespace DS_ISA {

template <class Source>
struct WideTile {
  static constexpr int kStride = Source::kStride;
  static constexpr int kRowTiles = kTileRows / 16;
  static constexpr int kSteps = kPartition / 32;  // tokens of a step: 32

  Tile<Source>& tile;
  int dim_groups, row_tiles;
  uint16_t *queries, *weights, *panel;  // [row tile][dim group][16][32], [row tile][step][16][32], operand of the other side

  // All of it takes the place of the tile's fp32 queries.
  explicit WideTile(Tile<Source>& of)
      : tile(of), dim_groups((of.source.key_dim + 31) / 32), row_tiles((of.task.rows + 15) / 16) {
    constexpr int used = kTileRows * (kStride - 16) + kTileRows * kPartition + kPartition * 16;
    static_assert(used * sizeof(uint16_t) <= kTileRows * kStride * sizeof(float));
    queries = reinterpret_cast<uint16_t*>(tile.queries);
    weights = queries + kTileRows * dim_groups * 32;
    panel = weights + kTileRows * kPartition;
  }

  void put_query(int r, const float* from, Vec scale) const {
    const int dim = tile.source.key_dim;
    for (int g = 0; g < dim_groups; ++g) {
      const Vec a = mul(load(from + g * 32), scale);
      const Vec b = g * 32 + 16 < dim ? mul(load(from + g * 32 + 16), scale) : zero();
      store_bf16(queries + ((r / 16) * dim_groups + g) * 512 + r % 16 * 32, a, b);
    }
  }

  // Like Tile::partition.
  void partition(int begin, int count) const {
    const int page_size = tile.source.page_size;
    const int stop = min_int(begin + count, tile.high[tile.task.rows - 1]);
    const int start = max_int(begin, tile.low[0]) / page_size * page_size;
    for (int at = start; at < stop; at += page_size) score_page(at, begin, min_int(page_size, stop - at));
    const int first = (start - begin) / 32, last = (stop - begin + 31) / 32;
    for (int r = 0; r < tile.task.rows; ++r) {
      const Range seen = tile.visible(r, begin, count);
      if (seen.begin < seen.end) {
        softmax_row(tile.weights + r * kScoreStride, seen.begin, seen.end, tile.maximum + r, tile.total + r);
      }
      for (int step = first; step < last; ++step) put_weights(r, step, seen);
    }
    sum_values(begin, stop, first, last);
  }

  void score_page(int at, int begin, int tokens) const {
    const int dim = tile.source.key_dim;
    const auto* keys = tile.source.keys(tile.page(at), tile.task.kv_head);
    for (int t = 0; t < tokens; t += 16) {
      for (int g = 0; g < dim_groups; ++g) {
        const bool half = g * 32 + 16 < dim;
        Vec pairs[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
          const auto* row = keys + (t + i) * dim + g * 32;
          pairs[i] = as_bf16(load_any(row), half ? load_any(row + 16) : zero());
        }
        transpose(pairs);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) store(reinterpret_cast<float*>(panel + g * 512 + i * 32), pairs[i]);
      }
      multiply(queries, dim_groups * 512, panel, 512, 512, dim_groups, tile.weights + (at - begin) + t, kScoreStride);
    }
  }

  // Weights of tokens [32 step, + 32) in bf16, zero where the row does not see.
  void put_weights(int r, int step, Range seen) const {
    const auto part = [&](int t) {
      const bool defined = seen.begin < seen.end && t + kLanes > seen.begin && t < seen.end;
      return defined ? load(tile.weights + r * kScoreStride + t) : zero();
    };
    store_bf16(weights + ((r / 16) * kSteps + step) * 512 + r % 16 * 32, part(step * 32), part(step * 32 + 16));
  }

  void sum_values(int begin, int stop, int first, int last) const {
    const int page_size = tile.source.page_size, dim = tile.source.value_dim;
    for (int d = 0; d < dim; d += kLanes) {
      for (int step = first; step < last; ++step) {
        const int at = begin + step * 32;
        const auto* from = tile.source.values(tile.page(at), tile.task.kv_head) + (at % page_size) * dim + d;
        uint16_t* to = panel + (step - first) * 512;
        for (int t = 0; t < 32; t += 2, from += 2 * dim) {
          const Vec even = at + t < stop ? load_any(from) : zero(), odd = at + t + 1 < stop ? load_any(from + dim) : zero();
          _mm512_storeu_si512(to + t * 16, pair_bf16(even.v, odd.v));
        }
      }
      multiply(weights + first * 512, kSteps * 512, panel, 512, 512, last - first, tile.sums + d, kStride);
    }
  }

  // out [row][16] = rows times a panel of `groups` groups.
  void multiply(const uint16_t* rows, int tile_stride, const uint16_t* right, int row_step, int right_step, int groups, float* out,
                int ld) const {
    const size_t bytes = ld * sizeof(float);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (int g = 0; g < groups; ++g) {
      _tile_loadd(6, right + g * right_step, 64);
      _tile_loadd(4, rows + g * row_step, 64);
      _tile_dpbf16ps(0, 4, 6);
      if (row_tiles > 1) {
        _tile_loadd(5, rows + tile_stride + g * row_step, 64);
        _tile_dpbf16ps(1, 5, 6);
      }
      if (row_tiles > 2) {
        _tile_loadd(7, rows + 2 * tile_stride + g * row_step, 64);
        _tile_dpbf16ps(2, 7, 6);
      }
    }
    _tile_stored(0, out, bytes);
    if (row_tiles > 1) _tile_stored(1, out + 16 * ld, bytes);
    if (row_tiles > 2) _tile_stored(2, out + 32 * ld, bytes);
    // The compiler does not know that these instructions write memory.
    asm volatile("" : : "r"(out) : "memory");
  }
};

}  // namespace DS_ISA
}  // namespace deepseek

#endif

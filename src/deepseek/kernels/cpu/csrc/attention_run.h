// The tasks of a batch's attention, run by a team.
#pragma once
#include "attention_wide.h"
#include "choose_pages.h"

namespace deepseek {
namespace DS_ISA {

// put(row, its query).
template <class Source, class Put>
static void load_queries(const Tile<Source>& tile, const QueryRows& rows, const Put& put) {
  const AttentionTask& task = tile.task;
  const int start = tile.layout.query_starts[task.sequence], dim = tile.source.key_dim;
  for (int r = 0; r < task.rows; ++r) {
    const int position = (task.first_row + r) / rows.group, head = (task.first_row + r) % rows.group;
    const float* from = rows.q + static_cast<int64_t>(start + position) * rows.ldq +
                        static_cast<int64_t>(task.kv_head * rows.group + head) * dim;
    put(r, from);
  }
}

// `attend` computes one partition of the tile.
template <class Source, class Attend>
static void run_task(Tile<Source>& tile, const QueryRows& rows, const Plan& plan, const Attend& attend) {
  const AttentionTask& task = tile.task;
  const int count = partition_tokens(tile.source.page_size);
  for (int p = task.first; p < task.last; ++p) {
    attend(p * count, count);
    for (int r = 0; r < task.rows; ++r) {
      const float* sums = tile.sums + r * Tile<Source>::kStride;
      if (task.split < 0) {
        tile.merge(r, p, tile.maximum[r], tile.total[r], sums, count);
      } else {
        float* to = partial(tile, plan, p, r);
        to[0] = tile.maximum[r];
        to[1] = tile.total[r];
        std::memcpy(to + 16, sums, sizeof(float) * tile.source.value_dim);
      }
    }
  }
  if (task.split >= 0) {
    // The last one to finish combines what all have written.
    if (__atomic_sub_fetch(plan.pending + task.split, 1, __ATOMIC_ACQ_REL) > 0) return;
    for (int p = task.tile_first; p < task.tile_last; ++p) {
      for (int r = 0; r < task.rows; ++r) {
        const float* from = partial(tile, plan, p, r);
        tile.merge(r, p, from[0], from[1], from + 16, count);
      }
    }
  }
  store_results(tile, rows);
}

// Attends to what the tile looks at now.
template <class Source, class Attend>
static void run_partitions(Tile<Source>& tile, const Attend& attend) {
  const int count = partition_tokens(tile.source.page_size), last = (tile.high[tile.task.rows - 1] - 1) / count + 1;
  for (int p = 0; p < last; ++p) {
    attend(p * count, count);
    for (int r = 0; r < tile.task.rows; ++r) {
      tile.merge(r, p, tile.maximum[r], tile.total[r], tile.sums + r * Tile<Source>::kStride, count);
    }
  }
}

// A tile that chooses its pages. Behind the pages of the exact part lies the room for the choice.
template <class Source, class Load, class Attend>
static void run_choosing(Tile<Source>& tile, const QueryRows& rows, float error, float* room, SparseStats& stats,
                         const Load& load_again, const Attend& attend) {
  constexpr int kExactPages = 2 * (kExactTokens + kTileRows) / kIndexTokens + 8;
  int32_t pages[kExactPages];
  PageChoice<Source> choice(tile, tile.source.cache.index, error, rows.group, room);
  if (choice.count > 0) {
    choice.score_means();
    choice.estimate();
    choice.look_at_exact(pages);
  }
  load_again();
  run_partitions(tile, attend);
  if (choice.count > 0) {
    choice.choose();
    choice.look_at_chosen();
    if (choice.listed > 0) run_partitions(tile, attend);
    choice.add_rest();
    stats.tile_pages += choice.count;
    stats.tile_pages_read += choice.listed;
  }
  store_results(tile, rows);
}

template <class Source>
static void run_narrow(Tile<Source>& tile, const QueryRows& rows, const Plan& plan, float error, float* room, SparseStats* stats) {
  const Vec scale = set1(rows.scale);
  load_queries(tile, rows, [&](int r, const float* from) {
    float* to = tile.queries + r * Tile<Source>::kStride;
    for (int d = 0; d < tile.source.key_dim; d += kLanes) store(to + d, mul(load(from + d), scale));
  });
  const auto attend = [&](int begin, int count) { tile.partition(begin, count); };
  error > 0.0f ? run_choosing(tile, rows, error, room, *stats, [] {}, attend) : run_task(tile, rows, plan, attend);
}

#ifdef __AMX_BF16__
template <class Source>
static void run_wide(Tile<Source>& tile, const QueryRows& rows, const Plan& plan, float error, float* room, SparseStats* stats) {
  const WideTile<Source> wide(tile);
  const Vec scale = set1(rows.scale);
  const auto load_wide = [&] { load_queries(tile, rows, [&](int r, const float* from) { wide.put_query(r, from, scale); }); };
  const auto attend = [&](int begin, int count) { wide.partition(begin, count); };
  if (error > 0.0f) {
    load_queries(tile, rows, [&](int r, const float* from) {
      float* to = tile.queries + r * Tile<Source>::kStride;
      for (int d = 0; d < tile.source.key_dim; d += kLanes) store(to + d, mul(load(from + d), scale));
    });
    run_choosing(tile, rows, error, room, *stats, load_wide, attend);
    return;
  }
  load_wide();
  run_task(tile, rows, plan, attend);
}
#endif

// Sequences whose rows begin at `narrow_rows` or later are wide, where the source has that form and pages hold whole steps.
template <class Source>
static void attend(const Source& source, int kv_heads, const QueryRows& rows, int window, const Layout& layout,
                   int narrow_rows, const Scratch& scratch, const Team& team) {
  const int choosing = choosing_pages(layout);
  const AttentionScratchSize size =
      attention_scratch(layout.num_rows, layout.num_sequences, kv_heads * rows.group, kv_heads, source.key_dim,
                        source.value_dim, source.page_size, Source::kStride, choosing, team.size);
  const Plan plan = place_plan(scratch, size, team.size);
  if (team.rank == 0) make_plan(plan, layout, kv_heads, rows.group, window, source.value_dim, team.size);
  team.sync();
  (void)narrow_rows;
#ifdef __AMX_BF16__
  const bool tiles = Source::kWide && narrow_rows < layout.num_rows && source.page_size % 32 == 0;
  if (tiles) configure_tiles();
#endif
  for (;;) {
    const int i = __atomic_fetch_add(plan.next, 1, __ATOMIC_RELAXED);
    if (i >= *plan.count) break;
    float* own = plan.threads + plan.per_thread * team.rank;
    Tile<Source> tile(source, layout, plan.tasks[plan.order[i]], rows.group, window, own);
    const float error = layout.errors ? layout.errors[tile.task.sequence] : 0.0f;
    float* room = own + size.per_thread - choosing_floats(choosing, Source::kStride);
#ifdef __AMX_BF16__
    if constexpr (Source::kWide) {
      if (tiles && layout.query_starts[tile.task.sequence] >= narrow_rows) {
        run_wide(tile, rows, plan, error, room, layout.stats ? layout.stats + team.rank : nullptr);
        continue;
      }
    }
#endif
    run_narrow(tile, rows, plan, error, room, layout.stats ? layout.stats + team.rank : nullptr);
  }
#ifdef __AMX_BF16__
  if (tiles) _tile_release();
#endif
  team.sync();
}


}  // namespace DS_ISA
}  // namespace deepseek

// How the attention of a batch is cut into tasks. Only the speed depends on it.
#pragma once
#include "attention_api.h"

namespace deepseek {
namespace DS_ISA {

struct Plan {
  AttentionTask* tasks;
  int* order;    // tasks, expensive ones first
  int* pending;  // per split tile, its unfinished tasks
  int* next;     // the next entry of `order` to be taken
  int* count;
  float* partials;
  float* threads;  // work space, per_thread floats each
  int64_t per_thread;
};

static inline char* aligned(void* p) {
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(p) + 63) & ~static_cast<uintptr_t>(63));
}

static inline Plan place_plan(const Scratch& scratch, const AttentionScratchSize& size, int threads) {
  Plan plan;
  char* at = aligned(scratch.floats);
  plan.tasks = reinterpret_cast<AttentionTask*>(at);
  plan.order = reinterpret_cast<int*>(plan.tasks + size.tasks);
  plan.pending = plan.order + size.tasks;
  plan.next = plan.pending + size.splits;
  plan.count = plan.next + 16;
  plan.threads = reinterpret_cast<float*>(aligned(plan.count + 1));
  plan.per_thread = (size.per_thread + 15) / 16 * 16;
  plan.partials = plan.threads + plan.per_thread * threads;
  return plan;
}

static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline int max_int(int a, int b) { return a > b ? a : b; }

// Visible positions of a query at `position` are [low, position].
static inline int first_visible(int position, int window) { return window > 0 ? max_int(0, position - window + 1) : 0; }

static inline int partition_tokens(int page_size) { return kPartition / page_size * page_size; }

// Rows of a tile that chooses its pages: they depend on which rows it has, so it has those of whole positions and begins at
// positions that are multiples of a power of two, and heads of one position where these do not fit into a tile.
static inline int choosing_rows(int group, int row) {
  int unit = group;
  while (2 * unit <= kTileRows && 2 * unit <= kIndexTokens * group) unit *= 2;
  return min_int(kTileRows, unit - row % unit);
}

// The tiles of all sequences, one after another.
struct TileWalk {
  const Layout& layout;
  int group, window;
  int sequence = 0, first_row = 0, rows = 0;
  int low = 0, high = 0;  // positions that any of the tile's rows sees: [low, high)

  bool next() {
    first_row += rows;
    for (; sequence < layout.num_sequences; ++sequence, first_row = 0, rows = 0) {
      if (layout.skip && layout.skip[sequence]) continue;
      const int queries = layout.query_starts[sequence + 1] - layout.query_starts[sequence];
      if (first_row >= queries * group) continue;
      rows = min_int(chooses() ? choosing_rows(group, first_row) : kTileRows, queries * group - first_row);
      const int start = layout.context_lens[sequence] - queries;
      low = first_visible(start + first_row / group, window);
      high = start + (first_row + rows - 1) / group + 1;
      return true;
    }
    return false;
  }
  bool chooses() const { return layout.errors && layout.errors[sequence] > 0.0f; }
  int64_t cost() const { return static_cast<int64_t>(rows) * (high - low); }
};

static inline int bit_length(int64_t x) { return 64 - __builtin_clzll(static_cast<uint64_t>(x) | 1); }

// Sorts by the magnitude of the costs, largest first.
static inline void order_tasks(const Plan& plan, int count) {
  int starts[66] = {};
  for (int i = 0; i < count; ++i) ++starts[64 - plan.tasks[i].cost_bits + 1];
  for (int b = 1; b < 66; ++b) starts[b] += starts[b - 1];
  for (int i = 0; i < count; ++i) plan.order[starts[64 - plan.tasks[i].cost_bits]++] = i;
}

// A tile is split along its context when it is more than its share of the work and there is room for partial results.
static inline void make_plan(const Plan& plan, const Layout& layout, int kv_heads, int group, int window, int value_dim,
                             int threads) {
  const int partition = partition_tokens(layout.page_size);
  int64_t total = 0;
  for (TileWalk tile{layout, group, window}; tile.next();) total += tile.cost() * kv_heads;
  const int64_t share = total / (8 * threads) > 1024 ? total / (8 * threads) : 1024;
  const int64_t room = threads > 1 ? kPartialFloats * threads : 0;
  int64_t used = 0;
  int count = 0, splits = 0;
  for (TileWalk tile{layout, group, window}; tile.next();) {
    const int first = tile.low / partition, last = (tile.high - 1) / partition + 1;
    const int parts = last - first;
    const int64_t need = static_cast<int64_t>(parts) * tile.rows * (value_dim + 16);
    for (int head = 0; head < kv_heads; ++head) {
      const bool split = parts > 1 && !tile.chooses() && tile.cost() > 2 * share && used + need <= room;
      const int pieces = split ? static_cast<int>(tile.cost() / share < parts ? tile.cost() / share : parts) : 1;
      for (int i = 0; i < pieces; ++i) {
        const int begin = first + static_cast<int>(static_cast<int64_t>(parts) * i / pieces);
        const int end = first + static_cast<int>(static_cast<int64_t>(parts) * (i + 1) / pieces);
        const int cost = bit_length(tile.cost() / pieces);
        plan.tasks[count++] = {tile.sequence,       head,  tile.first_row, tile.rows, begin, end,
                               split ? splits : -1, first, last,           used,      cost};
      }
      if (split) {
        plan.pending[splits++] = pieces;
        used += need;
      }
    }
  }
  order_tasks(plan, count);
  *plan.count = count;
  *plan.next = 0;
}

}  // namespace DS_ISA
}  // namespace deepseek

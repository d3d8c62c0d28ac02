// Mixture of experts, second half: rows sorted by expert, each expert's products on its own rows, and their weighted sum.
#pragma once
#include "routing.h"
#include "share.h"

namespace deepseek {
namespace DS_ISA {

static inline Rows view(const RowsMemory& r) { return {r.q, r.ld, r.groups, r.scale, r.sum, r.zero128, r.zero32}; }

// `rows` from row `row`, a multiple of 16, and column group `group` on.
static inline Rows part(Rows rows, int row, int group) {
  const size_t facts = static_cast<size_t>(row) * rows.groups + group * 16;
  rows.q += static_cast<size_t>(row) * rows.ld + group * kGroup;
  rows.scale += facts;
  rows.sum += facts;
  rows.zero128 += facts;
  rows.zero32 += 2 * facts;
  return rows;
}

static inline void copy_row(const Rows& from, int row, const Rows& to, int to_row) {
  std::memcpy(to.q + static_cast<size_t>(to_row) * to.ld, from.q + static_cast<size_t>(row) * from.ld, from.ld);
  for (int g = 0; g < from.groups; ++g) {
    const size_t a = from.at(row, g), b = to.at(to_row, g);
    to.scale[b] = from.scale[a];
    to.sum[b] = from.sum[a];
    to.zero128[b] = from.zero128[a];
    for (int h = 2 * g; h < 2 * g + 2; ++h) to.zero32[to.half_at(to_row, h)] = from.zero32[from.half_at(row, h)];
  }
}

// Where each chosen row goes, in the order of experts and, within one, of rows.
static inline void sort_rows(const Routing& r, const ExpertMemory& m, int rows) {
  const int choices = rows * r.top_k;
  for (int e = 0; e < r.experts; ++e) m.counts[e] = 0;
  for (int i = 0; i < choices; ++i) ++m.counts[m.ids[i]];
  int start = 0;
  for (int e = 0; e < r.experts; ++e) {
    m.starts[e] = start;
    start += (m.counts[e] + 15) / 16 * 16;
    m.counts[e] = 0;
  }
  for (int i = 0; i < choices; ++i) m.position[i] = m.starts[m.ids[i]] + m.counts[m.ids[i]]++;
}

// The experts of one layer at work on one step's rows, whose ids and weights are in `m`.
struct ExpertStep {
  const Experts& e;
  const ExpertMemory& m;
  Input input;  // of all rows, not sorted
  int rows;
  const Resources& resources;
  const Team& team;

  // Reading weights costs as much as a few rows' products do.
  int cost(int expert) const { return m.counts[expert] ? m.counts[expert] + 4 : 0; }

  void gather() const {
    const Rows sorted = view(m.input);
    const Range share = team.share(rows * e.routing.top_k);
    for (int i = share.begin; i < share.end; ++i) {
      const int row = i / e.routing.top_k, to = m.position[i];
      if (e.quantized) copy_row(*input.rows, row, sorted, to);
      if (e.floats) {
        std::memcpy(m.x + static_cast<size_t>(to) * m.hidden_ld, input.x + static_cast<size_t>(row) * input.ld,
                    sizeof(float) * m.hidden_ld);
      }
    }
  }

  void gate_up() const {
    auto bands = [&](int expert) { return e.gate_up[expert].bands(); };
    auto costs = [&](int expert) { return cost(expert); };
    share_bands(e.routing.experts, team, bands, costs, [&](int expert, int first, int count) {
      const int start = m.starts[expert], group = first / kSliceBands;
      const Rows in = part(view(m.input), start, 0), out = part(view(m.inner), start, group);
      const Matrix& down = e.down[expert];
      float* gated = is_float(down.format) ? m.gated + static_cast<size_t>(start) * m.inner_ld + group * kGroup : nullptr;
      const Gate sink{e.activation, nullptr, is_float(down.format) ? nullptr : &out, gated, m.inner_ld};
      const Input x{&in, m.x + static_cast<size_t>(start) * m.hidden_ld, m.hidden_ld};
      multiply(slice(e.gate_up[expert], first, count), x, m.counts[expert], resources, sink, alone());
    });
  }

  void down() const {
    auto bands = [&](int expert) { return e.down[expert].bands(); };
    auto costs = [&](int expert) { return cost(expert); };
    share_bands(e.routing.experts, team, bands, costs, [&](int expert, int first, int count) {
      const int start = m.starts[expert];
      const Rows in = part(view(m.inner), start, 0);
      const Store sink{m.output + static_cast<size_t>(start) * m.hidden_ld + first * kBand, m.hidden_ld, nullptr, false};
      const Input x{&in, m.gated + static_cast<size_t>(start) * m.inner_ld, m.inner_ld};
      multiply(slice(e.down[expert], first, count), x, m.counts[expert], resources, sink, alone());
    });
  }

  // y[row] += sum of weight * result over the row's experts, in the order of choice. Padding of the results is zero.
  void combine(float* y, int ld) const {
    const int top_k = e.routing.top_k, groups = m.hidden_ld / kGroup;
    const Range share = team.share(rows * groups);
    for (int i = share.begin; i < share.end; ++i) {
      const int row = i / groups, column = i % groups * kGroup;
      Vec a = zero(), b = zero();
      for (int k = row * top_k; k < (row + 1) * top_k; ++k) {
        const float* from = m.output + static_cast<size_t>(m.position[k]) * m.hidden_ld + column;
        const Vec weight = set1(m.weights[k]);
        a = fma(weight, load(from), a);
        b = fma(weight, load(from + 16), b);
      }
      float* to = y + static_cast<size_t>(row) * ld + column;
      store(to, add(load(to), a));
      store(to + 16, add(load(to + 16), b));
    }
  }

  // Rows to where their experts find them. Synchronises at the end.
  void sort() const {
    if (team.rank == 0) sort_rows(e.routing, m, rows);
    team.sync();
    gather();
    team.sync();
  }
};

}  // namespace DS_ISA
}  // namespace deepseek

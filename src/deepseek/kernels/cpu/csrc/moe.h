// Mixture of experts, second half: rows sorted by expert, each expert's products on its own rows, and their weighted sum.
#pragma once
#include "routing.h"
#include "share.h"

namespace deepseek {
namespace DS_ISA {

struct Resources {
  uint8_t* room;  // for unpacked weights
  bool tiles;     // wide rows go to the matrix unit
};

static inline Activations view(const RowsMemory& r, int narrow, bool tiles) {
  return {{r.high, r.low, r.ld, r.groups, r.scale, r.sum, r.zero128, r.zero32}, tiles ? r.wide : nullptr, narrow};
}

// `x` from row `row`, a multiple of 16, and column group `group` on; the first `narrow` of those rows are narrow.
static inline Activations part(Activations x, int row, int group, int narrow) {
  Rows& rows = x.rows;
  const size_t start = static_cast<size_t>(row) * rows.ld;
  const size_t facts = static_cast<size_t>(row) * rows.groups + group * 16;
  rows.high += start + group * kGroup;
  rows.low += start + group * kGroup;
  rows.scale += facts;
  rows.sum += facts;
  rows.zero128 += facts;
  rows.zero32 += 2 * facts;
  if (x.wide) x.wide += start + group * 512;
  x.narrow = narrow;
  return x;
}

// Copies row `row` to row `to_row`, both narrow or both wide.
static inline void copy_row(const Activations& from, int row, const Activations& to, int to_row) {
  const Rows &a = from.rows, &b = to.rows;
  const bool wide = row >= from.narrow;
  if (wide && from.wide) {
    const int i = row - from.narrow, j = to_row - to.narrow;
    const uint16_t* x = from.wide_tile(i / 16) + i % 16 * kGroup;
    uint16_t* y = to.wide + static_cast<size_t>(j / 16) * b.groups * 512 + j % 16 * kGroup;
    for (int g = 0; g < a.groups; ++g) std::memcpy(y + g * 512, x + g * 512, sizeof(uint16_t) * kGroup);
    return;
  }
  std::memcpy(b.high + static_cast<size_t>(to_row) * b.ld, a.high + static_cast<size_t>(row) * a.ld, a.ld);
  if (!wide) std::memcpy(b.low + static_cast<size_t>(to_row) * b.ld, a.low + static_cast<size_t>(row) * a.ld, a.ld);
  for (int g = 0; g < a.groups; ++g) {
    const size_t i = a.at(row, g), j = b.at(to_row, g);
    b.scale[j] = a.scale[i];
    b.sum[j] = a.sum[i];
    b.zero128[j] = a.zero128[i];
    for (int h = 2 * g; h < 2 * g + 2; ++h) b.zero32[b.half_at(to_row, h)] = a.zero32[a.half_at(row, h)];
  }
}

// Where each chosen row goes, in the order of experts and, within one, of rows.
static inline void sort_rows(const Routing& r, const ExpertMemory& m, int rows, int narrow_rows) {
  const int choices = rows * r.top_k;
  for (int e = 0; e < r.experts; ++e) m.counts[e] = m.narrow[e] = 0;
  for (int i = 0; i < choices; ++i) ++m.counts[m.ids[i]];
  int start = 0;
  for (int e = 0; e < r.experts; ++e) {
    m.starts[e] = start;
    start += (m.counts[e] + 15) / 16 * 16;
    m.counts[e] = 0;
  }
  for (int i = 0; i < choices; ++i) {
    const int expert = m.ids[i];
    m.position[i] = m.starts[expert] + m.counts[expert]++;
    m.narrow[expert] += i < narrow_rows * r.top_k;
  }
}

// The experts of one layer at work on one step's rows, whose ids and weights are in `m`.
struct ExpertStep {
  const Experts& e;
  const ExpertMemory& m;
  Input input;  // of all rows, not sorted
  int rows;
  const Resources& resources;
  const Team& team;

  // In products of a narrow row: reading weights is as much as three, unpacking them for wide rows four more.
  int cost(int expert) const {
    const int narrow = m.narrow[expert], wide = m.counts[expert] - narrow;
    return m.counts[expert] ? 3 + narrow + (wide ? 4 + (wide + 15) / 16 : 0) : 0;
  }

  // An expert's rows among the sorted ones, from a column group on.
  Activations rows_of(int expert, const RowsMemory& memory, int group) const {
    return part(view(memory, 0, resources.tiles), m.starts[expert], group, m.narrow[expert]);
  }

  void gather() const {
    const Range share = team.share(rows * e.routing.top_k);
    for (int i = share.begin; i < share.end; ++i) {
      const int row = i / e.routing.top_k, expert = m.ids[i];
      if (e.packed) copy_row(*input.packed, row, rows_of(expert, m.input, 0), m.position[i] - m.starts[expert]);
      if (e.floats) {
        std::memcpy(m.x + static_cast<size_t>(m.position[i]) * m.hidden_ld,
                    input.x + static_cast<size_t>(row) * input.ld, sizeof(float) * m.hidden_ld);
      }
    }
  }

  void gate_up() const {
    auto bands = [&](int expert) { return e.gate_up[expert].bands(); };
    auto costs = [&](int expert) { return cost(expert); };
    share_matrices(e.routing.experts, team, bands, costs, [&](int expert, int first, int count) {
      const size_t start = m.starts[expert];
      const int group = first / kSliceBands;
      const Format next = e.down[expert].format;
      const Activations in = rows_of(expert, m.input, 0), out = rows_of(expert, m.inner, group);
      const Gate sink{e.activation, nullptr, next == Format::kFp16 ? nullptr : &out,
                      is_float(next) ? m.gated + start * m.inner_ld + group * kGroup : nullptr, m.inner_ld};
      const Input x{&in, m.x + start * m.hidden_ld, m.hidden_ld};
      multiply(slice(e.gate_up[expert], first, count), x, m.counts[expert], resources.room, sink, alone());
    });
  }

  void down() const {
    auto bands = [&](int expert) { return e.down[expert].bands(); };
    auto costs = [&](int expert) { return cost(expert); };
    share_matrices(e.routing.experts, team, bands, costs, [&](int expert, int first, int count) {
      const size_t start = m.starts[expert];
      const Activations in = rows_of(expert, m.inner, 0);
      const Store sink{m.output + start * m.hidden_ld + first * kBand, m.hidden_ld, nullptr, false};
      const Input x{&in, m.gated + start * m.inner_ld, m.inner_ld};
      multiply(slice(e.down[expert], first, count), x, m.counts[expert], resources.room, sink, alone());
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
    if (team.rank == 0) sort_rows(e.routing, m, rows, input.packed->narrow);
    team.sync();
    gather();
    team.sync();
  }
};

}  // namespace DS_ISA
}  // namespace deepseek

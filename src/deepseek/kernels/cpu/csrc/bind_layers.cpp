// Python's descriptions of mixture-of-experts and latent layers, and their kernels alone, for tests.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>

#include "decoder.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace deepseek {
namespace {

template <class T>
using Array2 = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// One layer's experts with a workspace for `rows`, and rows padded to whole groups.
struct Bench {
  const Kernels& kernels;
  const Experts& experts;
  Buffers buffers;
  const Workspace* work;
  int rows, hidden, ld;
  std::vector<float> x;

  Bench(ExpertsSpec& spec, const Array2<const float>& from, const std::string& isa, int threads)
      : kernels(kernels_for(isa)),
        experts(*spec.plain(static_cast<int>(from.shape(1)))),
        rows(static_cast<int>(from.shape(0))),
        hidden(static_cast<int>(from.shape(1))),
        ld(padded(hidden, kGroup)),
        x(static_cast<size_t>(rows) * ld) {
    Buffers::Shape shape;
    shape.hidden = hidden;
    shape.rows = rows;
    shape.threads = threads;
    shape.room_bytes = kernels.room_bytes(std::max(ld, experts.inner) / kGroup);
    shape.experts.cover(experts, hidden);
    work = &buffers.fit(shape);
    for (int r = 0; r < rows; ++r) {
      std::copy_n(from.data() + static_cast<size_t>(r) * hidden, hidden, x.data() + static_cast<size_t>(r) * ld);
    }
  }
};

void route(ExpertsSpec& spec, Array2<const float> x, Array2<int32_t> ids, Array2<float> weights, const std::string& isa,
           int threads) {
  Bench bench(spec, x, isa, threads);
  const size_t count = static_cast<size_t>(bench.rows) * spec.routing.top_k;
  if (ids.size() != count || weights.size() != count) throw std::invalid_argument("ids and weights must be [rows, top_k]");
  nb::gil_scoped_release release;
  bench.kernels.route(bench.experts, bench.x.data(), bench.ld, bench.rows, *bench.work, threads);
  std::copy_n(bench.work->experts.ids, count, ids.data());
  std::copy_n(bench.work->experts.weights, count, weights.data());
}

void moe(ExpertsSpec& spec, Array2<const float> x, Array2<const int32_t> ids, Array2<const float> weights,
         Array2<float> out, const std::string& isa, int threads, std::optional<int> first) {
  Bench bench(spec, x, isa, threads);
  const size_t count = static_cast<size_t>(bench.rows) * spec.routing.top_k;
  if (ids.size() != count || weights.size() != count || out.size() != x.size()) {
    throw std::invalid_argument("ids and weights must be [rows, top_k], out like x");
  }
  const int narrow = first.value_or(bench.rows);
  if (narrow < 0 || narrow > bench.rows) throw std::invalid_argument("narrow must be 0 to the number of rows");
  for (size_t i = 0; i < count; ++i) {
    if (ids.data()[i] < 0 || ids.data()[i] >= spec.routing.experts) throw std::invalid_argument("no such expert");
  }
  nb::gil_scoped_release release;
  std::copy_n(ids.data(), count, bench.work->experts.ids);
  std::copy_n(weights.data(), count, bench.work->experts.weights);
  std::vector<float> y(bench.x.size());
  bench.kernels.mix(bench.experts, bench.x.data(), bench.ld, bench.rows, narrow, *bench.work, y.data(), bench.ld, threads);
  for (int r = 0; r < bench.rows; ++r) {
    std::copy_n(y.data() + static_cast<size_t>(r) * bench.ld, bench.hidden, out.data() + static_cast<size_t>(r) * bench.hidden);
  }
}

}  // namespace

void bind_layers(nb::module_& m) {
  nb::class_<Pool>(m, "Pool", "Memory that many matrices share.").def(nb::init<>());
  nb::class_<LinearSpec>(m, "LinearSpec")
      .def(nb::init<>())
      .def_rw("parts", &LinearSpec::parts)
      .def_rw("bias", &LinearSpec::bias);
  nb::class_<Routing>(m, "Routing", "As deepseek.layers.moe.Routing.")
      .def("__init__",
           [](Routing* self, int experts, int top_k, int groups, int top_groups, bool sigmoid, bool best_two,
              bool normalize, float scale) {
             new (self) Routing{experts, top_k, groups, top_groups, sigmoid, best_two, normalize, scale};
           },
           "experts"_a, "top_k"_a, "groups"_a, "top_groups"_a, "sigmoid"_a, "best_two"_a, "normalize"_a, "scale"_a);
  nb::class_<ExpertsSpec>(m, "ExpertsSpec", "The routed experts of one layer.")
      .def(nb::init<>())
      .def_rw("routing", &ExpertsSpec::routing)
      .def_rw("bias", &ExpertsSpec::bias)
      .def_rw("gate_up", &ExpertsSpec::gate_up)
      .def_rw("down", &ExpertsSpec::down)
      .def_rw("inner", &ExpertsSpec::inner)
      .def_rw("activation", &ExpertsSpec::activation)
      .def("set_router", [](ExpertsSpec& self, Array2<const float> router) {
             self.router.assign(router.data(), router.data() + router.size());
           }, "router"_a, "fp32 [experts, hidden]");
  nb::class_<LatentSpec>(m, "LatentSpec", "The latent attention of one layer.")
      .def(nb::init<>())
      .def_rw("query_down", &LatentSpec::query_down)
      .def_rw("query", &LatentSpec::query)
      .def_rw("down", &LatentSpec::down)
      .def_rw("query_norm", &LatentSpec::query_norm)
      .def_rw("norm", &LatentSpec::norm)
      .def_rw("eps", &LatentSpec::eps)
      .def_rw("key_up", &LatentSpec::key_up)
      .def_rw("value_up", &LatentSpec::value_up)
      .def_rw("nope", &LatentSpec::nope)
      .def_rw("rope", &LatentSpec::rope)
      .def_rw("rank", &LatentSpec::rank)
      .def_rw("value_dim", &LatentSpec::value_dim)
      .def_rw("interleaved", &LatentSpec::interleaved);
  m.def("route", &route, "experts"_a, "x"_a, "ids"_a, "weights"_a, "isa"_a = "auto", "threads"_a = 1,
        "Fills ids int32 and weights fp32 [rows, top_k] from x fp32 [rows, hidden].");
  m.def("moe", &moe, "experts"_a, "x"_a, "ids"_a, "weights"_a, "out"_a, "isa"_a = "auto", "threads"_a = 1,
        "narrow"_a = nb::none(),
        "Fills out fp32 [rows, hidden] with the weighted sums of the chosen experts' results. The first `narrow` rows are "
        "narrow (None: all).");
}

}  // namespace deepseek

// Python's descriptions of adapters, and their kernels alone, for tests.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "adapter.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace deepseek {
namespace {

using Packed = nb::ndarray<const uint16_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

void add(LowRankSpec& self, Packed a, Packed b, int column, bool alternate, float scale) {
  if (a.shape(2) != kBand || b.shape(2) != kBand) throw std::invalid_argument("a and b must be packed by sixteen");
  self.add(a.data(), static_cast<int>(a.shape(0)), static_cast<int>(a.shape(1)), b.data(), static_cast<int>(b.shape(0)),
           static_cast<int>(b.shape(1)), column, alternate, scale);
}

}  // namespace

void bind_adapters(nb::module_& m) {
  nb::class_<LowRankSpec>(m, "LowRankSpec", "An adapter's updates of the matrices of one input.")
      .def(nb::init<>())
      .def("add", &add, "a"_a, "b"_a, "column"_a, "alternate"_a, "scale"_a,
           "a: fp16 bits [ranks / 16, inputs padded to 32, 16]; b: [output bands, rank, 16].")
      .def("set_gain", &LowRankSpec::set_gain, "gain"_a, "fp32 for each output, padded, in the order of the bands.");
  nb::class_<AdapterLayerSpec>(m, "AdapterLayerSpec")
      .def(nb::init<>())
      .def_ro("qkv", &AdapterLayerSpec::qkv)
      .def_ro("output", &AdapterLayerSpec::output)
      .def_ro("gate_up", &AdapterLayerSpec::gate_up)
      .def_ro("down", &AdapterLayerSpec::down);
}

}  // namespace deepseek

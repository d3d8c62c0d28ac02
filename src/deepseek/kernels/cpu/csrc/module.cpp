// The Python face of the extension: deepseek.kernels.cpu._native.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>

#include "decoder.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace deepseek {

void bind_adapters(nb::module_& m);
void bind_attention(nb::module_& m);
void bind_layers(nb::module_& m);
void bind_sampling(nb::module_& m);
void bind_sparse(nb::module_& m);
nb::dict to_dict(const SparseStats& stats);

namespace {

template <class T>
using Array1 = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Array2 = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

const char* const kFormats[] = {"int8", "int8_channel", "int4", "q4_k", "q6_k", "fp16", "bf16"};

Format format_named(const std::string& name) {
  for (int i = 0; i < 7; ++i)
    if (name == kFormats[i]) return static_cast<Format>(i);
  throw std::invalid_argument("unknown matrix format '" + name + "'");
}

// Source rows must fit where they are put.
void check_place(const Matrix& m, int rows, int cols, Placement place) {
  if (cols > m.padded_cols() || cols < m.cols || rows < 1 || place.start < 0 || place(rows - 1) >= m.bands() * kBand) {
    throw std::invalid_argument("rows or columns do not fit into the matrix");
  }
}

int put_gguf_array(PackedMatrix& self, const std::string& type, Array2<uint8_t> data, int start, bool alternate) {
  const Placement place{start, alternate};
  Matrix& m = self.matrix;
  const int rows = static_cast<int>(data.shape(0));
  check_place(m, rows, m.cols, place);
  const int format = format_of_gguf(type.c_str());
  const struct {
    const char* type;
    int elements, bytes;
  } blocks[] = {{"Q8_0", 32, 34}, {"Q5_0", 32, 22}, {"Q4_0", 32, 18}, {"Q4_1", 32, 20}, {"Q4_K", 256, 144}, {"Q6_K", 256, 210}};
  bool fits = format == static_cast<int>(m.format);
  for (const auto& b : blocks) {
    if (type == b.type) fits = fits && data.shape(1) == static_cast<size_t>(m.cols / b.elements * b.bytes) && m.cols % b.elements == 0;
  }
  if (!fits) throw std::invalid_argument("blocks of type " + type + " do not fit into the matrix");
  nb::gil_scoped_release release;
  return put_gguf(m, type.c_str(), data.data(), rows, data.shape(1), place);
}

int put_int8_array(PackedMatrix& self, Array2<int8_t> q, Array2<float> scale, int group, int start, bool alternate) {
  const Placement place{start, alternate};
  Matrix& m = self.matrix;
  const int rows = static_cast<int>(q.shape(0)), cols = static_cast<int>(q.shape(1));
  check_place(m, rows, cols, place);
  const bool channel = m.format == Format::kInt8Channel;
  if ((!channel && m.format != Format::kInt8) || (channel ? group != cols : group % kGroup != 0 && group < cols) ||
      static_cast<int>(scale.shape(0)) != rows || static_cast<int>(scale.shape(1)) != (cols + group - 1) / group) {
    throw std::invalid_argument("int8 values and scales do not fit the matrix");
  }
  nb::gil_scoped_release release;
  return put_int8(m, q.data(), scale.data(), rows, cols, group, place);
}

int put_int4_array(PackedMatrix& self, Array2<uint8_t> q, Array2<float> scale, std::optional<Array2<float>> minimum,
                   int group, int start, bool alternate) {
  const Placement place{start, alternate};
  Matrix& m = self.matrix;
  const int rows = static_cast<int>(q.shape(0)), cols = static_cast<int>(q.shape(1));
  check_place(m, rows, cols, place);
  const int scales = (cols + group - 1) / group;
  if (m.format != Format::kInt4 || (group % kGroup != 0 && group < cols) || static_cast<int>(scale.shape(0)) != rows ||
      static_cast<int>(scale.shape(1)) != scales || (minimum && minimum->size() != scale.size())) {
    throw std::invalid_argument("int4 values and scales do not fit the matrix");
  }
  const float* least = minimum ? minimum->data() : nullptr;
  nb::gil_scoped_release release;
  return put_int4(m, q.data(), scale.data(), least, rows, cols, group, place);
}

int put_float_array(PackedMatrix& self, Array2<float> values, int start, bool alternate) {
  const Placement place{start, alternate};
  const int rows = static_cast<int>(values.shape(0)), cols = static_cast<int>(values.shape(1));
  check_place(self.matrix, rows, cols, place);
  if (!is_float(self.matrix.format)) throw std::invalid_argument("floats need a floating matrix");
  nb::gil_scoped_release release;
  return put_float(self.matrix, values.data(), rows, cols, place);
}

nb::object to_numpy(std::vector<float> values, size_t rows, size_t cols) {
  auto* kept = new std::vector<float>(std::move(values));
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<2>>(kept->data(), {rows, cols}, owner));
}

nb::object dequantize(const PackedMatrix& self) {
  const Matrix& m = self.matrix;
  std::vector<float> values(static_cast<size_t>(m.rows) * m.cols), row(m.padded_cols());
  for (int r = 0; r < m.rows; ++r) {
    dequantize_row(m, r, row.data());
    std::copy_n(row.data(), m.cols, values.data() + static_cast<size_t>(r) * m.cols);
  }
  return to_numpy(std::move(values), m.rows, m.cols);
}

nb::object multiply(const PackedMatrix& self, Array2<float> x, const std::string& isa, int threads, std::optional<int> first) {
  const Matrix& m = self.matrix;
  const int rows = static_cast<int>(x.shape(0)), cols = static_cast<int>(x.shape(1));
  const int narrow = first.value_or(rows);
  if (narrow < 0 || narrow > rows) throw std::invalid_argument("narrow must be 0 to the number of rows");
  if (cols != m.cols) throw std::invalid_argument("x must have as many columns as the matrix");
  const Kernels& kernels = kernels_for(isa);
  const int ldx = m.padded_cols(), ld = m.bands() * kBand;
  std::vector<float> in(static_cast<size_t>(rows) * ldx), out(static_cast<size_t>(rows) * ld);
  for (int r = 0; r < rows; ++r) std::copy_n(x.data() + static_cast<size_t>(r) * cols, cols, in.data() + static_cast<size_t>(r) * ldx);
  Buffers buffers;
  Buffers::Shape shape;
  shape.hidden = m.cols;
  shape.rows = rows;
  shape.threads = threads;
  shape.room_bytes = kernels.room_bytes(m.groups);
  const Workspace& work = buffers.fit(shape);
  {
    nb::gil_scoped_release release;
    kernels.multiply(m, in.data(), ldx, rows, narrow, work, out.data(), ld, threads);
  }
  std::vector<float> result(static_cast<size_t>(rows) * m.rows);
  for (int r = 0; r < rows; ++r) std::copy_n(out.data() + static_cast<size_t>(r) * ld, m.rows, result.data() + static_cast<size_t>(r) * m.rows);
  return to_numpy(std::move(result), rows, m.rows);
}

template <class T>
const T* pointer(uintptr_t address) {
  return reinterpret_cast<const T*>(address);
}

}  // namespace
}  // namespace deepseek

NB_MODULE(_native, m) {
  using namespace deepseek;
  m.def("available_isas", &available_isas, "Instruction sets that this processor runs, best first.");

  bind_layers(m);
  bind_adapters(m);
  nb::class_<PackedMatrix>(m, "Matrix", "A weight matrix in the kernels' layout; see csrc/formats.h.")
      .def("__init__", [](PackedMatrix* self, const std::string& format, int rows, int cols, std::shared_ptr<Pool> pool) {
             new (self) PackedMatrix(format_named(format), rows, cols, std::move(pool));
           }, "format"_a, "rows"_a, "cols"_a, "pool"_a.none() = nb::none())
      .def_prop_ro("format", [](const PackedMatrix& p) { return kFormats[static_cast<int>(p.matrix.format)]; })
      .def_prop_ro("shape", [](const PackedMatrix& p) { return nb::make_tuple(p.matrix.rows, p.matrix.cols); })
      .def_prop_ro("nbytes", &PackedMatrix::bytes)
      .def("put_gguf", &put_gguf_array, "type"_a, "data"_a, "start"_a = 0, "alternate"_a = false)
      .def("put_int8", &put_int8_array, "q"_a, "scale"_a, "group"_a, "start"_a = 0, "alternate"_a = false)
      .def("put_int4", &put_int4_array, "q"_a, "scale"_a, "minimum"_a.none(), "group"_a, "start"_a = 0, "alternate"_a = false)
      .def("put_float", &put_float_array, "values"_a, "start"_a = 0, "alternate"_a = false)
      .def("dequantize", &dequantize, "fp32 [rows, cols]")
      .def("multiply", &multiply, "x"_a, "isa"_a = "auto", "threads"_a = 1, "narrow"_a = nb::none(),
           "x fp32 [n, cols] times the matrix -> fp32 [n, rows], as a step computes it whose first rows are narrow (None: all).");
  m.def("format_of_gguf", [](const std::string& type) -> std::optional<std::string> {
    const int format = format_of_gguf(type.c_str());
    if (format < 0) return std::nullopt;
    return kFormats[format];
  });

  nb::class_<LayerSpec>(m, "LayerSpec")
      .def(nb::init<>())
      .def_rw("before_attention", &LayerSpec::before_attention)
      .def_rw("after_attention", &LayerSpec::after_attention)
      .def_rw("before_feed_forward", &LayerSpec::before_feed_forward)
      .def_rw("after_feed_forward", &LayerSpec::after_feed_forward)
      .def_rw("query_norm", &LayerSpec::query_norm)
      .def_rw("key_norm", &LayerSpec::key_norm)
      .def_rw("eps", &LayerSpec::eps)
      .def_rw("head_eps", &LayerSpec::head_eps)
      .def_rw("qkv", &LayerSpec::qkv)
      .def_rw("output", &LayerSpec::output)
      .def_rw("gate_up", &LayerSpec::gate_up)
      .def_rw("down", &LayerSpec::down)
      .def_rw("latent", &LayerSpec::latent)
      .def_rw("experts", &LayerSpec::experts)
      .def_rw("heads", &LayerSpec::heads)
      .def_rw("kv_heads", &LayerSpec::kv_heads)
      .def_rw("head_dim", &LayerSpec::head_dim)
      .def_rw("window", &LayerSpec::window)
      .def_rw("rotary", &LayerSpec::rotary)
      .def_rw("inner", &LayerSpec::inner)
      .def_rw("activation", &LayerSpec::activation)
      .def_rw("scale", &LayerSpec::scale);
  nb::class_<Cache>(m, "Cache")
      .def_prop_ro("nbytes", &Cache::bytes)
      .def_prop_ro("index_bytes", &Cache::index_bytes)
      .def("copy_page", [](Cache& self, int from, int to) { self.store().copy_page(from, to); }, "source"_a, "target"_a,
           nb::call_guard<nb::gil_scoped_release>(), "Copies a page in all layers, with its index.")
      .def("write", [](Cache& self, int layer, Array1<int64_t> slots, Array2<float> keys, Array2<float> values) {
             const KvCache& cache = self.layers.at(layer);
             const int rows = static_cast<int>(slots.size()), width = cache.kv_heads * cache.key_dim;
             if (static_cast<int>(keys.shape(0)) != rows || static_cast<int>(keys.shape(1)) != width ||
                 static_cast<int>(values.shape(0)) != rows || static_cast<int>(values.shape(1)) != width) {
               throw std::invalid_argument("keys and values must be [slots, heads * dimension]");
             }
             for (int i = 0; i < rows; ++i) {
               if (slots.data()[i] < 0 || slots.data()[i] >= static_cast<int64_t>(self.store().pages()) * cache.page_size) {
                 throw std::invalid_argument("a slot is beyond the cache");
               }
             }
             Barrier alone(1);
             const Layout layout{0, rows, cache.page_size, nullptr, nullptr, nullptr, 0, slots.data(), nullptr};
             kernels_for("auto").attention().write_kv(cache, keys.data(), width, values.data(), width, layout, Team{0, 1, &alone});
           }, "layer"_a, "slots"_a, "keys"_a, "values"_a, "Stores keys and values fp32 [slots, heads * dimension] as they are.")
      .def("checksum", [](Cache& self, int page) { return self.store().checksum(page); }, "page"_a,
           nb::call_guard<nb::gil_scoped_release>(), "64 bits of the keys and values of a page, over all layers.");
  nb::class_<Decoder>(m, "Decoder")
      .def(nb::init<const std::string&, int, int, int, MatrixPtr, float, MatrixPtr, std::vector<float>, float, float,
                    std::vector<LayerSpec>>(),
           "isa"_a, "threads"_a, "hidden"_a, "vocab"_a, "embedding"_a, "embedding_scale"_a, "head"_a, "norm"_a, "eps"_a,
           "softcap"_a, "layers"_a)
      .def_prop_ro("isa", &Decoder::isa)
      .def("add_adapter", &Decoder::add_adapter, "layers"_a, nb::call_guard<nb::gil_scoped_release>(),
           "An adapter for steps to come; returns its number.")
      .def("remove_adapter", &Decoder::remove_adapter, "number"_a)
      .def("adapter_bytes", &Decoder::adapter_bytes, "number"_a)
      .def("sparse_stats", [](const Decoder& self) { return to_dict(self.sparse_stats()); }, "Sums over all steps: what sparse attention read, and how wrong it may be; see csrc/sparse_api.h.")
      .def("new_cache",
           [](const Decoder& self, int pages, int page_size, bool int8, bool indexed, int file, int resident) {
             return self.new_cache(pages, page_size, int8, indexed, {file, resident});
           },
           "pages"_a, "page_size"_a, "int8"_a, "indexed"_a = false, "file"_a = -1, "resident"_a = 0)
      .def("set_rotary", [](Decoder& self, int index, Array2<float> cos, Array2<float> sin) {
             self.set_rotary(index, {cos.data(), cos.data() + cos.size()}, {sin.data(), sin.data() + sin.size()},
                             static_cast<int>(cos.shape(1)));
           }, "index"_a, "cos"_a, "sin"_a)
      .def("forward",
           [](Decoder& self, Cache& cache, int rows, int narrow_rows, int narrow_attention, uintptr_t token_ids, uintptr_t positions, int sequences, int page_size,
              uintptr_t query_starts, uintptr_t context_lens, uintptr_t pages, int pages_stride, uintptr_t write_slots,
              int num_logits, uintptr_t logits_rows, uintptr_t logits, int num_hidden, uintptr_t hidden_rows,
              uintptr_t hidden, uintptr_t sparse_errors, uintptr_t dense_until, const std::vector<std::tuple<int, int, int>>& segments,
              int num_vectors, uintptr_t vector_rows, uintptr_t vectors) {
             Step step{rows,
                       narrow_rows,
                       narrow_attention,
                       pointer<int64_t>(token_ids),
                       pointer<int32_t>(positions),
                       Layout{sequences, rows, page_size, pointer<int32_t>(query_starts), pointer<int32_t>(context_lens),
                              pointer<int32_t>(pages), pages_stride, pointer<int64_t>(write_slots), nullptr},
                       num_logits,
                       pointer<int64_t>(logits_rows),
                       0,
                       nullptr,
                       reinterpret_cast<float*>(logits),
                       num_hidden,
                       pointer<int64_t>(hidden_rows),
                       reinterpret_cast<float*>(hidden),
                       {}};
             step.num_vectors = num_vectors;
             step.vector_rows = pointer<int64_t>(vector_rows);
             step.vectors = pointer<float>(vectors);
             std::vector<AdapterRows> adapters;
             for (const auto& [adapter, begin, end] : segments) adapters.push_back({adapter, begin, end});
             nb::gil_scoped_release release;
             self.forward(step, cache, {pointer<float>(sparse_errors), pointer<int32_t>(dense_until)}, adapters);
           },
           "One step. The numbers are addresses of contiguous arrays; deepseek.kernels.cpu.decoder keeps them alive.");
  bind_sampling(m);
#ifdef DS_BIND_ATTENTION
  bind_attention(m);
  bind_sparse(m);
#endif
}

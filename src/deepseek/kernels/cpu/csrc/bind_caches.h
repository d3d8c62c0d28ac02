// What the Python faces of the attention kernels share: caches and layouts from arrays, checked.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <stdexcept>

#include "kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace deepseek {

template <class T, int N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using AnyArray = nb::ndarray<nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Scales = std::optional<Array<float, 3>>;

inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

inline int length(size_t n) { return static_cast<int>(n); }

inline KvCache cache_of(const AnyArray& keys, const AnyArray& values, const Scales& key_scales, const Scales& value_scales) {
  KvCache cache{};
  cache.kv_heads = length(keys.shape(1));
  cache.key_dim = length(keys.shape(3));
  cache.page_size = length(values.shape(2));
  cache.value_dim = length(values.shape(3));
  cache.int8 = keys.dtype() == nb::dtype<int8_t>();
  cache.keys = keys.data();
  cache.values = values.data();
  const nb::dlpack::dtype half{static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
  require(keys.dtype() == values.dtype() && (cache.int8 || keys.dtype() == half),
          "keys and values must be fp16 or int8");
  require(keys.shape(0) == values.shape(0) && keys.shape(1) == values.shape(1) && keys.shape(2) == values.shape(2),
          "keys must be [pages, kv_heads, page_size, key_dim], values [pages, kv_heads, page_size, value_dim]");
  require(cache.page_size % 16 == 0 && cache.page_size >= 16 && cache.page_size <= kPartition,
          "page_size must be a multiple of 16, at most 256");
  require(cache.key_dim % 16 == 0 && cache.value_dim % 16 == 0 && cache.key_dim <= kMaxHeadDim &&
              cache.value_dim <= kMaxHeadDim && cache.key_dim > 0 && cache.value_dim > 0,
          "head dimensions must be multiples of 16, at most 512");
  require(key_scales.has_value() == cache.int8 && value_scales.has_value() == cache.int8,
          "int8 keys and values have scales, fp16 ones have none");
  if (cache.int8) {
    for (const Scales* scales : {&key_scales, &value_scales}) {
      const Array<float, 3>& s = **scales;
      require(s.shape(0) == keys.shape(0) && s.shape(1) == keys.shape(1) && s.shape(2) == values.shape(2),
              "scales must be [pages, kv_heads, page_size]");
    }
    cache.key_scales = key_scales->data();
    cache.value_scales = value_scales->data();
  }
  return cache;
}

inline LatentCache latent_cache_of(const Array<uint16_t, 3>& cache, int rank) {
  const int dim = length(cache.shape(2)), page_size = length(cache.shape(1));
  require(rank > 0 && rank % 16 == 0 && dim % 16 == 0 && dim >= rank && dim <= kMaxLatentDim,
          "rank and rank + rope must be multiples of 16, at most 1024");
  require(page_size >= 16 && page_size % 16 == 0 && page_size <= kPartition,
          "page_size must be a multiple of 16, at most 256");
  return {rank, dim - rank, page_size, cache.data(), {}};
}

inline Layout layout_of(const Array<const int32_t, 1>& query_starts, const Array<const int32_t, 1>& context_lens,
                 const Array<const int32_t, 2>& pages, size_t rows, size_t num_pages, int page_size) {
  const int sequences = length(context_lens.size()), stride = length(pages.shape(1));
  require(length(query_starts.size()) == sequences + 1 && length(pages.shape(0)) == sequences,
          "query_starts needs one entry more than there are sequences, pages one row per sequence");
  require(query_starts.data()[0] == 0 && query_starts.data()[sequences] == length(rows),
          "query_starts must begin with 0 and end with the number of rows");
  for (int i = 0; i < sequences; ++i) {
    const int queries = query_starts.data()[i + 1] - query_starts.data()[i], context = context_lens.data()[i];
    require(queries >= 0 && context >= queries && (context + page_size - 1) / page_size <= stride,
            "a sequence's context must hold its queries and fit its pages");
    for (int p = 0; p < (context + page_size - 1) / page_size; ++p) {
      const int page = pages.data()[static_cast<int64_t>(i) * stride + p];
      require(page >= 0 && page < length(num_pages), "a page lies outside the cache");
    }
  }
  return {sequences, length(rows), page_size, query_starts.data(), context_lens.data(), pages.data(), stride, nullptr, nullptr};
}

}  // namespace deepseek

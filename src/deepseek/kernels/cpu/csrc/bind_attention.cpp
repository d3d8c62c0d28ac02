// Python functions for the attention kernels alone, on caches that are arrays: for their tests and benchmarks.
#include <nanobind/stl/string.h>

#include <cstring>
#include <memory>
#include <string>

#include "bind_caches.h"
#include "decoder.h"

namespace deepseek {
namespace {

Layout slots_of(const Array<const int64_t, 1>& slots, size_t rows, size_t num_pages, int page_size) {
  require(slots.size() == rows, "one slot per row");
  for (size_t i = 0; i < rows; ++i) {
    require(slots.data()[i] >= 0 && slots.data()[i] < static_cast<int64_t>(num_pages) * page_size,
            "a slot lies outside the cache");
  }
  Layout layout{};
  layout.num_rows = length(rows);
  layout.page_size = page_size;
  layout.write_slots = slots.data();
  return layout;
}

void write_kv(Array<const float, 3> keys, Array<const float, 3> values, AnyArray key_cache, AnyArray value_cache,
              Scales key_scales, Scales value_scales, Array<const int64_t, 1> slots, const std::string& isa,
              int threads) {
  const KvCache cache = cache_of(key_cache, value_cache, key_scales, value_scales);
  const Layout layout = slots_of(slots, keys.shape(0), key_cache.shape(0), cache.page_size);
  require(length(keys.shape(1)) == cache.kv_heads && length(keys.shape(2)) == cache.key_dim &&
              values.shape(0) == keys.shape(0) && length(values.shape(1)) == cache.kv_heads &&
              length(values.shape(2)) == cache.value_dim,
          "keys and values must be [rows, kv_heads, dim] of the cache");
  const AttentionKernels& kernels = kernels_for(isa).attention();
  nb::gil_scoped_release release;
  parallel(threads, [&](const Team& team) {
    kernels.write_kv(cache, keys.data(), cache.kv_heads * cache.key_dim, values.data(),
                     cache.kv_heads * cache.value_dim, layout, team);
  });
}

void rotate(Array<float, 2> heads, Array<const float, 1> cos, Array<const float, 1> sin, bool interleaved,
            const std::string& isa) {
  require(cos.size() == sin.size() && 2 * cos.size() <= heads.shape(1), "cos and sin must have half a head or less");
  kernels_for(isa).attention().rotate(heads.data(), length(heads.shape(0)), length(heads.shape(1)), cos.data(),
                                      sin.data(), length(cos.size()), interleaved);
}

void rope_and_write(Array<float, 2> qkv, int heads, Array<const int32_t, 1> positions,
                    std::optional<Array<const float, 2>> cos, std::optional<Array<const float, 2>> sin,
                    bool interleaved, std::optional<Array<const float, 1>> query_norm,
                    std::optional<Array<const float, 1>> key_norm, float eps, AnyArray key_cache, AnyArray value_cache,
                    Scales key_scales, Scales value_scales, Array<const int64_t, 1> slots, const std::string& isa,
                    int threads) {
  const KvCache cache = cache_of(key_cache, value_cache, key_scales, value_scales);
  const Layout layout = slots_of(slots, qkv.shape(0), key_cache.shape(0), cache.page_size);
  require(length(qkv.shape(1)) >= (heads + cache.kv_heads) * cache.key_dim + cache.kv_heads * cache.value_dim,
          "a row must hold all queries, keys and values");
  require(cos.has_value() == sin.has_value(), "cos and sin come together");
  Rotation rotation{};
  if (cos) {
    require(cos->shape(0) == sin->shape(0) && cos->shape(1) == sin->shape(1) &&
                2 * length(cos->shape(1)) <= cache.key_dim && positions.size() == qkv.shape(0),
            "cos and sin must be [positions, half], one position per row");
    for (size_t i = 0; i < positions.size(); ++i) {
      const int position = positions.data()[i];
      require(position >= 0 && position < length(cos->shape(0)), "a position lies outside the tables");
    }
    rotation = {positions.data(), cos->data(), sin->data(), length(cos->shape(1)), interleaved, nullptr, nullptr, 0};
  }
  for (const auto* norm : {&query_norm, &key_norm}) {
    require(!norm->has_value() || length((*norm)->size()) == cache.key_dim, "a norm has one weight per dimension");
  }
  rotation.query_norm = query_norm ? query_norm->data() : nullptr;
  rotation.key_norm = key_norm ? key_norm->data() : nullptr;
  rotation.eps = eps;
  const AttentionKernels& kernels = kernels_for(isa).attention();
  nb::gil_scoped_release release;
  parallel(threads, [&](const Team& team) {
    kernels.rope_and_write(qkv.data(), length(qkv.shape(1)), heads, rotation, cache, layout, team);
  });
}

void attention(Array<const float, 3> q, Array<float, 3> out, AnyArray key_cache, AnyArray value_cache,
               Scales key_scales, Scales value_scales, Array<const int32_t, 1> query_starts,
               Array<const int32_t, 1> context_lens, Array<const int32_t, 2> pages, float scale, int window,
               const std::string& isa, int threads, std::optional<int> narrow_rows) {
  const KvCache cache = cache_of(key_cache, value_cache, key_scales, value_scales);
  const int rows = length(q.shape(0)), heads = length(q.shape(1));
  require(heads % cache.kv_heads == 0 && length(q.shape(2)) == cache.key_dim && out.shape(0) == q.shape(0) &&
              length(out.shape(1)) == heads && length(out.shape(2)) == cache.value_dim,
          "q must be [rows, heads, key_dim] and out [rows, heads, value_dim], heads a multiple of kv_heads");
  const Layout layout = layout_of(query_starts, context_lens, pages, q.shape(0), key_cache.shape(0), cache.page_size);
  const AttentionKernels& kernels = kernels_for(isa).attention();
  const int narrow = std::strcmp(kernels_for(isa).name, "amx") == 0 ? narrow_rows.value_or(rows) : rows;
  const int64_t size = kv_attention_scratch(rows, layout.num_sequences, heads, cache, 0, threads);
  const std::unique_ptr<float[]> memory(new float[size]);
  const Scratch scratch{memory.get(), size};
  nb::gil_scoped_release release;
  parallel(threads, [&](const Team& team) {
    kernels.attention(cache, q.data(), heads * cache.key_dim, out.data(), heads * cache.value_dim, heads, scale, window,
                      layout, narrow, scratch, team);
  });
}

void mla_decode(Array<const float, 3> q, Array<float, 3> out, Array<uint16_t, 3> latent_cache,
                Array<const int32_t, 1> query_starts, Array<const int32_t, 1> context_lens,
                Array<const int32_t, 2> pages, float scale, const std::string& isa, int threads) {
  const int rows = length(q.shape(0)), heads = length(q.shape(1)), rank = length(out.shape(2));
  const LatentCache cache = latent_cache_of(latent_cache, rank);
  require(length(q.shape(2)) == rank + cache.rope && out.shape(0) == q.shape(0) && length(out.shape(1)) == heads,
          "q must be [rows, heads, rank + rope] and out [rows, heads, rank]");
  const Layout layout =
      layout_of(query_starts, context_lens, pages, q.shape(0), latent_cache.shape(0), cache.page_size);
  const AttentionKernels& kernels = kernels_for(isa).attention();
  const int64_t size = mla_scratch(rows, layout.num_sequences, heads, cache, 0, threads);
  const std::unique_ptr<float[]> memory(new float[size]);
  const Scratch scratch{memory.get(), size};
  nb::gil_scoped_release release;
  parallel(threads, [&](const Team& team) {
    kernels.mla_decode(cache, q.data(), heads * (rank + cache.rope), out.data(), heads * rank, heads, scale, layout,
                       scratch, team);
  });
}

void write_latent(Array<const float, 2> rows, Array<uint16_t, 3> latent_cache, Array<const int64_t, 1> slots,
                  const std::string& isa, int threads) {
  const LatentCache cache = latent_cache_of(latent_cache, length(rows.shape(1)));
  const Layout layout = slots_of(slots, rows.shape(0), latent_cache.shape(0), cache.page_size);
  const AttentionKernels& kernels = kernels_for(isa).attention();
  nb::gil_scoped_release release;
  parallel(threads,
           [&](const Team& team) { kernels.write_latent(cache, rows.data(), length(rows.shape(1)), layout, team); });
}

}  // namespace

void bind_attention(nb::module_& m) {
  m.def("write_kv", &write_kv, "keys"_a, "values"_a, "key_cache"_a, "value_cache"_a, "key_scales"_a.none(),
        "value_scales"_a.none(), "slots"_a, "isa"_a = "auto", "threads"_a = 1,
        "Stores fp32 [rows, kv_heads, dim] in a cache of keys [pages, kv_heads, page_size, key_dim] and values [pages, "
        "kv_heads, page_size, value_dim], fp16, or int8 with scales [pages, kv_heads, page_size].");
  m.def("rotate", &rotate, "heads"_a, "cos"_a, "sin"_a, "interleaved"_a = false, "isa"_a = "auto",
        "Turns fp32 [heads, dim] of one token in place by cos and sin [half].");
  m.def(
      "rope_and_write", &rope_and_write, "qkv"_a, "heads"_a, "positions"_a, "cos"_a.none(), "sin"_a.none(),
      "interleaved"_a, "query_norm"_a.none(), "key_norm"_a.none(), "eps"_a, "key_cache"_a, "value_cache"_a,
      "key_scales"_a.none(), "value_scales"_a.none(), "slots"_a, "isa"_a = "auto", "threads"_a = 1,
      "Norms and turns the queries and keys of fp32 rows [queries | keys | values] in place and stores the last two.");
  m.def("attention", &attention, "q"_a, "out"_a, "key_cache"_a, "value_cache"_a, "key_scales"_a.none(),
        "value_scales"_a.none(), "query_starts"_a, "context_lens"_a, "pages"_a, "scale"_a, "window"_a = 0,
        "isa"_a = "auto", "threads"_a = 1, "narrow_rows"_a = nb::none(),
        "Fills out fp32 [rows, heads, value_dim] from q fp32 [rows, heads, key_dim].");
  m.def("mla_decode", &mla_decode, "q"_a, "out"_a, "latent_cache"_a, "query_starts"_a, "context_lens"_a, "pages"_a,
        "scale"_a, "isa"_a = "auto", "threads"_a = 1,
        "Fills out fp32 [rows, heads, rank] from q fp32 [rows, heads, rank + rope] and a cache of fp16 bits, uint16 "
        "[pages, rank + rope, page_size].");
  m.def("write_latent", &write_latent, "rows"_a, "latent_cache"_a, "slots"_a, "isa"_a = "auto", "threads"_a = 1,
        "Stores fp32 [rows, rank + rope].");
}

}  // namespace deepseek

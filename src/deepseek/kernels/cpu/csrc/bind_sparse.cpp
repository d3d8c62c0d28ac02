// Python functions for sparse attention alone, on caches that are arrays: for its tests and benchmarks.
#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "bind_caches.h"
#include "decoder.h"

namespace deepseek {

nb::dict to_dict(const SparseStats& s) {
  nb::dict d;
  d["heads"] = s.heads;
  d["context_tokens"] = s.context_tokens;
  d["read_tokens"] = s.read_tokens;
  d["bytes"] = s.bytes;
  d["dense_bytes"] = s.dense_bytes;
  d["dense_pieces"] = s.dense_pieces;
  d["pieces"] = s.pieces;
  d["tail"] = s.tail;
  d["estimate"] = s.estimate;
  d["bound"] = s.bound;
  d["checks"] = s.checks;
  d["error"] = s.error;
  d["violations"] = s.violations;
  d["prefill_pages"] = s.tile_pages;
  d["prefill_read"] = s.tile_pages_read;
  return d;
}

namespace {

using Bytes = Array<uint8_t, 3>;

PageIndex index_of(const Bytes& keys, const Bytes& values, const Bytes& codes, int kv_heads, int key_dim, int value_dim, size_t pages) {
  PageIndex index;
  index.keys = reinterpret_cast<char*>(keys.data());
  index.values = reinterpret_cast<char*>(values.data());
  index.codes = codes.data();
  index.pages = length(pages);
  index.kv_heads = kv_heads;
  index.key_dim = key_dim;
  index.value_dim = value_dim;
  const auto fits = [&](const Bytes& array, size_t bytes) {
    return length(array.shape(0)) == kv_heads && array.shape(1) == pages && array.shape(2) == bytes;
  };
  require(fits(keys, index.key_bytes()) && fits(values, index.value_bytes()) && fits(codes, index.code_bytes()),
          "an index has keys [kv_heads, pages, 16 + key_dim], values [kv_heads, pages, 16 + value_dim] and codes [kv_heads, pages, "
          "8 key_dim + 64]");
  return index;
}

KvCache indexed(const AnyArray& keys, const AnyArray& values, const Scales& key_scales, const Scales& value_scales,
                const Bytes& index_keys, const Bytes& index_values, const Bytes& index_codes) {
  KvCache cache = cache_of(keys, values, key_scales, value_scales);
  require(cache.page_size == kIndexTokens, "an index needs pages of 64 tokens");
  cache.index = index_of(index_keys, index_values, index_codes, cache.kv_heads, cache.key_dim, cache.value_dim, keys.shape(0));
  return cache;
}

LatentCache indexed(const Array<uint16_t, 3>& latents, int rank, const Bytes& index_keys, const Bytes& index_values,
                    const Bytes& index_codes) {
  LatentCache cache = latent_cache_of(latents, rank);
  require(cache.page_size == kIndexTokens, "an index needs pages of 64 tokens");
  cache.index = index_of(index_keys, index_values, index_codes, 1, rank + cache.rope, rank, latents.shape(0));
  return cache;
}

// Runs a kernel for all sequences of a batch, of which each has its allowed error.
struct Run {
  Layout layout;
  SparsePlan plan;
  std::vector<SparseStats> stats;
  std::unique_ptr<float[]> memory;
  Scratch scratch;

  Run(const Layout& of, const Array<const float, 1>& errors, int heads, const PageIndex& index, int stride, int threads)
      : layout(of), stats(threads) {
    require(length(errors.size()) == layout.num_sequences, "one error per sequence");
    const std::vector<int32_t> none(layout.num_sequences, 0);
    layout.stats = stats.data();
    plan.make(layout, {errors.data(), none.data()});
    layout.skip = plan.skip();
    layout.errors = plan.errors();
    const int64_t rows = sparse_scratch(plan.rows().count, plan.rows().pieces, heads, index.kv_heads, index.key_dim, index.value_dim,
                                        stride, threads).total;
    const int64_t tiles = attention_scratch(layout.num_rows, layout.num_sequences, heads, index.kv_heads, index.key_dim,
                                            index.value_dim, layout.page_size, stride, choosing_pages(layout), threads).total;
    const int64_t size = std::max(rows, tiles);
    memory.reset(new float[size]);
    scratch = {memory.get(), size};
  }

  nb::dict sum() const {
    SparseStats total{};
    for (const SparseStats& own : stats) total += own;
    return to_dict(total);
  }
};

void index_kv(AnyArray keys, AnyArray values, Scales key_scales, Scales value_scales, Bytes index_keys, Bytes index_values,
              Bytes index_codes, Array<const int32_t, 1> query_starts, Array<const int32_t, 1> context_lens,
              Array<const int32_t, 2> pages, const std::string& isa, int threads) {
  const KvCache cache = indexed(keys, values, key_scales, value_scales, index_keys, index_values, index_codes);
  const size_t rows = query_starts.data()[query_starts.size() - 1];
  const Layout layout = layout_of(query_starts, context_lens, pages, rows, keys.shape(0), cache.page_size);
  const int64_t size = static_cast<int64_t>(threads) * kIndexTokens * std::max(cache.key_dim, cache.value_dim);
  const std::unique_ptr<float[]> memory(new float[size]);
  const AttentionKernels& kernels = kernels_for(isa).attention();
  nb::gil_scoped_release release;
  parallel(threads, [&](const Team& team) { kernels.index_kv(cache, layout, {memory.get(), size}, team); });
}

void index_latents(Array<uint16_t, 3> latents, int rank, Bytes index_keys, Bytes index_values, Bytes index_codes,
                   Array<const int32_t, 1> query_starts, Array<const int32_t, 1> context_lens, Array<const int32_t, 2> pages,
                   const std::string& isa, int threads) {
  const LatentCache cache = indexed(latents, rank, index_keys, index_values, index_codes);
  const size_t rows = query_starts.data()[query_starts.size() - 1];
  const Layout layout = layout_of(query_starts, context_lens, pages, rows, latents.shape(0), cache.page_size);
  const int64_t size = static_cast<int64_t>(threads) * kIndexTokens * cache.index.key_dim;
  const std::unique_ptr<float[]> memory(new float[size]);
  const AttentionKernels& kernels = kernels_for(isa).attention();
  nb::gil_scoped_release release;
  parallel(threads, [&](const Team& team) { kernels.index_latents(cache, layout, {memory.get(), size}, team); });
}

nb::dict sparse_attention(Array<const float, 3> q, Array<float, 3> out, AnyArray keys, AnyArray values, Scales key_scales,
                          Scales value_scales, Bytes index_keys, Bytes index_values, Bytes index_codes,
                          Array<const int32_t, 1> query_starts, Array<const int32_t, 1> context_lens, Array<const int32_t, 2> pages,
                          Array<const float, 1> errors, float scale, const std::string& isa, int threads) {
  const KvCache cache = indexed(keys, values, key_scales, value_scales, index_keys, index_values, index_codes);
  const int heads = length(q.shape(1));
  require(heads % cache.kv_heads == 0 && length(q.shape(2)) == cache.key_dim && out.shape(0) == q.shape(0) &&
              length(out.shape(1)) == heads && length(out.shape(2)) == cache.value_dim,
          "q must be [rows, heads, key_dim] and out [rows, heads, value_dim], heads a multiple of kv_heads");
  const Layout layout = layout_of(query_starts, context_lens, pages, q.shape(0), keys.shape(0), cache.page_size);
  Run run(layout, errors, heads, cache.index, kKvStride, threads);
  const AttentionKernels& kernels = kernels_for(isa).attention();
  {
    nb::gil_scoped_release release;
    parallel(threads, [&](const Team& team) {
      kernels.attention(cache, q.data(), heads * cache.key_dim, out.data(), heads * cache.value_dim, heads, scale, 0, run.layout,
                        run.layout.num_rows, run.scratch, team);
      kernels.sparse_attention(cache, q.data(), heads * cache.key_dim, out.data(), heads * cache.value_dim, heads, scale, run.layout,
                               run.plan.rows(), run.scratch, team);
    });
  }
  return run.sum();
}

nb::dict sparse_mla(Array<const float, 3> q, Array<float, 3> out, Array<uint16_t, 3> latents, Bytes index_keys, Bytes index_values,
                    Bytes index_codes, Array<const int32_t, 1> query_starts, Array<const int32_t, 1> context_lens,
                    Array<const int32_t, 2> pages, Array<const float, 1> errors, float scale, const std::string& isa, int threads) {
  const int heads = length(q.shape(1)), rank = length(out.shape(2));
  const LatentCache cache = indexed(latents, rank, index_keys, index_values, index_codes);
  require(length(q.shape(2)) == cache.index.key_dim && out.shape(0) == q.shape(0) && length(out.shape(1)) == heads,
          "q must be [rows, heads, rank + rope] and out [rows, heads, rank]");
  const Layout layout = layout_of(query_starts, context_lens, pages, q.shape(0), latents.shape(0), cache.page_size);
  Run run(layout, errors, heads, cache.index, kLatentStride, threads);
  const AttentionKernels& kernels = kernels_for(isa).attention();
  {
    nb::gil_scoped_release release;
    parallel(threads, [&](const Team& team) {
      kernels.mla_decode(cache, q.data(), heads * cache.index.key_dim, out.data(), heads * rank, heads, scale, run.layout,
                         run.scratch, team);
      kernels.sparse_mla(cache, q.data(), heads * cache.index.key_dim, out.data(), heads * rank, heads, scale, run.layout,
                         run.plan.rows(), run.scratch, team);
    });
  }
  return run.sum();
}

}  // namespace

void bind_sparse(nb::module_& m) {
  m.def("index_kv", &index_kv, "key_cache"_a, "value_cache"_a, "key_scales"_a.none(), "value_scales"_a.none(), "index_keys"_a,
        "index_values"_a, "index_codes"_a, "query_starts"_a, "context_lens"_a, "pages"_a, "isa"_a = "auto", "threads"_a = 1,
        "Indexes the pages that the rows of a batch have filled. The index is uint8: keys [pages, kv_heads, 16 + key_dim], values "
        "[pages, kv_heads, 16 + value_dim], codes [pages, kv_heads, 8 key_dim + 64]; see csrc/layout.h.");
  m.def("index_latents", &index_latents, "latent_cache"_a, "rank"_a, "index_keys"_a, "index_values"_a, "index_codes"_a,
        "query_starts"_a, "context_lens"_a, "pages"_a, "isa"_a = "auto", "threads"_a = 1);
  m.def("sparse_attention", &sparse_attention, "q"_a, "out"_a, "key_cache"_a, "value_cache"_a, "key_scales"_a.none(),
        "value_scales"_a.none(), "index_keys"_a, "index_values"_a, "index_codes"_a, "query_starts"_a, "context_lens"_a, "pages"_a,
        "errors"_a, "scale"_a, "isa"_a = "auto", "threads"_a = 1,
        "Like attention, each sequence with the relative error that it allows, 0 for dense. Returns sums of what was read.");
  m.def("sparse_mla", &sparse_mla, "q"_a, "out"_a, "latent_cache"_a, "index_keys"_a, "index_values"_a, "index_codes"_a,
        "query_starts"_a, "context_lens"_a, "pages"_a, "errors"_a, "scale"_a, "isa"_a = "auto", "threads"_a = 1);
}

}  // namespace deepseek

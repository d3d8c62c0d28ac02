// The Python function for sampling.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "decoder.h"
#include "sampling.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace deepseek {
namespace {

using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ChoiceTuple = std::tuple<float, int64_t, double, double, double>;

std::vector<int32_t> choose_tokens(const Logits& logits, const std::vector<ChoiceTuple>& tuples, const std::string& isa,
                                   int threads) {
  if (tuples.size() != logits.shape(0)) throw std::invalid_argument("one choice per row of logits");
  if (logits.shape(1) == 0) throw std::invalid_argument("rows of logits must not be empty");
  std::vector<Choice> choices;
  for (const auto& [temperature, top_k, top_p, min_p, draw] : tuples) {
    choices.push_back({temperature, top_k, top_p, min_p, draw});
  }
  const bool narrow = std::string(kernels_for(isa).name) == "avx2";
  const ChooseTokens kernel = narrow ? choose_tokens_avx2 : choose_tokens_avx512;
  std::vector<int32_t> tokens(choices.size());
  nb::gil_scoped_release release;
  kernel(logits.data(), static_cast<int>(choices.size()), static_cast<int>(logits.shape(1)), choices.data(),
         tokens.data(), threads);
  return tokens;
}

}  // namespace

void bind_sampling(nb::module_& m) {
  m.def("choose_tokens", &choose_tokens, "logits"_a, "choices"_a, "isa"_a = "auto", "threads"_a = 1,
        "A token for each row of fp32 logits [rows, vocab], -1 for a row with NaN or infinity. A choice is "
        "(temperature, top_k, top_p, min_p, draw); see deepseek.kernels.sampling.");
}

}  // namespace deepseek

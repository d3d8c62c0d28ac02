// From logits to tokens: what one row of a step asks for, and the kernel that answers.
#pragma once
#include <cstdint>

namespace deepseek {

// The same facts as deepseek.kernels.sampling.Choice.
struct Choice {
  float temperature;  // 0: the likeliest token
  int64_t top_k;      // 0: all
  double top_p;
  double min_p;
  double draw;        // in [0, 1)
};

// tokens[r] for each row of logits [rows][vocab], -1 where the row holds NaN or infinity. The result depends on the
// row and its choice alone: not on other rows, the number of threads, or the instruction set.
using ChooseTokens = void (*)(const float* logits, int rows, int vocab, const Choice* choices, int32_t* tokens,
                              int threads);

void choose_tokens_avx2(const float* logits, int rows, int vocab, const Choice* choices, int32_t* tokens, int threads);
void choose_tokens_avx512(const float* logits, int rows, int vocab, const Choice* choices, int32_t* tokens,
                          int threads);

}  // namespace deepseek

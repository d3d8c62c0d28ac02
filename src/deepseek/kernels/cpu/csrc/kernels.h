// The entry points that are compiled once per instruction set.
#pragma once
#include "model.h"
#include "workspace.h"

namespace deepseek {

struct Kernels {
  const char* name;
  const AttentionKernels& (*attention)();
  // One step of a model on at most `threads` threads.
  void (*forward)(const Model& model, const Step& step, const Workspace& work, int threads);
  // y [rows][ld] = x [rows][ldx] times the matrix, the first `narrow` rows as narrow ones.
  void (*multiply)(const Matrix& matrix, const float* x, int ldx, int rows, int narrow, const Workspace& work, float* y, int ld,
                   int threads);
  // Fills ids and weights of work.experts; x has rows of `ld` columns, zero beyond the real ones.
  void (*route)(const Experts& experts, const float* x, int ld, int rows, const Workspace& work, int threads);
  // y [rows][ld] += what the experts make of x [rows][ldx], by the ids and weights in work.experts.
  void (*mix)(const Experts& experts, const float* x, int ldx, int rows, int narrow, const Workspace& work, float* y,
              int ld, int threads);
  // Bytes that unpacked weights with up to `groups` groups of columns take per thread.
  size_t (*room_bytes)(int groups);
};

const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_amx();

}  // namespace deepseek

// Memory of a step's intermediate results, allocated for the largest step so far.
#pragma once
#include <cstddef>
#include <cstdint>

#include "attention_api.h"

namespace deepseek {

struct RowsMemory {
  int8_t* high;
  int8_t* low;
  int ld;
  int groups;
  float* scale;
  float* sum;
  int32_t* zero128;
  int32_t* zero32;
  uint16_t* wide;
};

// Leading dimensions are padded to whole groups of 32 columns; the padding stays zero.
struct Workspace {
  int hidden_ld, qkv_ld, attended_ld, inner_ld;
  float* residual;  // [rows][hidden_ld]
  float* normed;
  float* sublayer;
  float* qkv;       // [rows][qkv_ld]
  float* attended;  // [rows][attended_ld]
  float* inner;     // [rows][inner_ld]
  RowsMemory input, attended_rows, inner_rows;
  Scratch attention;
  uint8_t* rooms;      // per thread, for unpacked weights
  size_t room_bytes;
};

}  // namespace deepseek

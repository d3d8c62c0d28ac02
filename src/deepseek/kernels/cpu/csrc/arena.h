// Pieces of one allocation.
#pragma once
#include <cstddef>

#include "workspace.h"

namespace deepseek {

inline int padded(int n, int to) { return (n + to - 1) / to * to; }

// Hands out pieces of one allocation; with null memory it only counts.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}
  template <class T>
  T* take(size_t count) {
    used_ = (used_ + 63) / 64 * 64;
    T* result = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += count * sizeof(T);
    return result;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// Quantized rows of `ld` columns.
RowsMemory take_rows(Arena& arena, int rows, int ld);

}  // namespace deepseek

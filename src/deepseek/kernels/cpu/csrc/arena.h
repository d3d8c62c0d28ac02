// Pieces of one allocation.
#pragma once
#include <cstddef>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

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
#ifdef __SANITIZE_ADDRESS__
    constexpr size_t gap = 256;  // nobody's: touching it is an error
    const size_t begin = (used_ + 7) / 8 * 8;
    if (base_) __asan_poison_memory_region(base_ + begin, gap);
    used_ = begin + gap;
#endif
    return result;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// Rows for the matrix kernels, of `ld` columns.
RowsMemory take_rows(Arena& arena, int rows, int ld);

}  // namespace deepseek

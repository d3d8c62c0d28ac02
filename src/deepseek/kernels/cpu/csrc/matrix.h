// Weight matrices and the memory that they lie in.
#pragma once
#include <memory>
#include <vector>

#include "formats.h"
#include "memory.h"

namespace deepseek {

// Memory for many matrices of a model, one after another in large pieces: hundreds of experts would each waste the rest
// of a huge page, and use up the mappings that a process may have.
class Pool {
 public:
  Pool() = default;
  Pool(const Pool&) = delete;

  // Zeroed and aligned to 64 bytes; valid as long as the pool.
  uint8_t* take(size_t bytes);

 private:
  static constexpr size_t kPiece = size_t{64} << 20;
  std::vector<Memory> pieces_;
  size_t used_ = 0;  // of the last piece
};

class PackedMatrix {
 public:
  // In memory of its own, or in a pool, which it keeps alive.
  PackedMatrix(Format format, int rows, int cols, std::shared_ptr<Pool> pool = nullptr);
  PackedMatrix(const PackedMatrix&) = delete;

  Matrix matrix;
  size_t bytes() const { return matrix.band_bytes * matrix.bands(); }

 private:
  Memory memory_;
  std::shared_ptr<Pool> pool_;
};

using MatrixPtr = std::shared_ptr<PackedMatrix>;

}  // namespace deepseek

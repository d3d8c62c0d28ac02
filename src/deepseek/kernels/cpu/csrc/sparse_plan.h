// Which rows of a step are attended to sparsely.
#pragma once
#include <vector>

#include "sparse_api.h"

namespace deepseek {

// Which sequences may be: the error that is allowed, 0 for none, and the length up to which a context is dense all the
// same.
struct SparseWish {
  const float* errors;         // [num_sequences], or null: none
  const int32_t* dense_until;  // [num_sequences]
};

class SparsePlan {
 public:
  // A sequence is sparse by its first row: drafts behind a row do not change how it is computed.
  void make(const Layout& layout, const SparseWish& wish) {
    rows_.clear();
    skip_.assign(layout.num_sequences, 0);
    errors_.assign(layout.num_sequences, 0.0f);
    others_.assign(layout.num_sequences, 1);
    pieces_ = 0;
    if (wish.errors == nullptr) return;
    for (int s = 0; s < layout.num_sequences; ++s) {
      const int first = layout.query_starts[s], rows = layout.query_starts[s + 1] - first;
      const int context = layout.context_lens[s] - rows + 1;  // of the first row
      if (wish.errors[s] <= 0.0f || rows == 0 || context <= wish.dense_until[s]) continue;
      if (rows > kMaxSparseRows) {
        errors_[s] = wish.errors[s];
        continue;
      }
      skip_[s] = 1;
      others_[s] = 0;
      for (int i = 0; i < rows; ++i) {
        rows_.push_back({first + i, s, context + i, wish.errors[s], pieces_});
        pieces_ += rows_.back().pieces();
      }
    }
  }

  // [num_sequences]: whose rows are attended to one by one.
  const uint8_t* skip() const { return skip_.data(); }
  const uint8_t* others() const { return others_.data(); }
  // [num_sequences]: the errors that are allowed to tiles of rows, 0 for those that are dense or skipped.
  const float* errors() const { return errors_.data(); }
  SparseRows rows() const { return {rows_.data(), static_cast<int>(rows_.size()), pieces_}; }

 private:
  std::vector<SparseRow> rows_;
  std::vector<uint8_t> skip_, others_;
  std::vector<float> errors_;
  int pieces_ = 0;
};

}  // namespace deepseek

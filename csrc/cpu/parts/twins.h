// Masked copies that share more than their clip. Where stripes of bins alone are felt, a cell
// depends on which bins within its reach are masked: two copies in which these are the same are
// twins there, and have the same cell.
#pragma once

#include <cstdint>
#include <cstring>

#include "bits.h"
#include "cells.h"
#include "scratch.h"

namespace fastsep::FASTSEP_ISA {

// The twins of all copies in the cells of one grid.
class Twins {
 public:
  Twins(Bump& scratch, const Grid& grid, int64_t copies)
      : row_words_(words_of(grid.rows)),
        col_words_(words_of(grid.cols)),
        rows_(scratch.take<uint64_t>(copies * row_words_)),
        mixed_(scratch.take<uint64_t>(copies * col_words_)),
        found_(scratch.take<Found>(copies)),
        cols_(scratch.take<uint64_t>(copies * kMost * col_words_)) {}

  // The next copy is felt in these rows for its stripes of frames, and mixed in these columns for
  // those of bins: both masked and unmasked bins are in reach.
  void add(int64_t copy, const uint64_t* rows) const {
    std::memcpy(rows_ + copy * row_words_, rows, size_t(row_words_) * sizeof *rows);
    found_[copy].count = 0;
    for (int64_t w = 0; w < col_words_; ++w) mixed(copy)[w] = ~uint64_t{0};
  }
  void mix(int64_t copy, const uint64_t* cols) const {
    for (int64_t w = 0; w < col_words_; ++w) mixed(copy)[w] &= cols[w];
  }

  // A copy before it, and the columns in whose reach the two have other bins masked.
  void compare(int64_t copy, int64_t other, const uint64_t* differ) const {
    Found& found = found_[copy];
    if (found.count == kMost) return;
    uint64_t any = 0, *const same = cols(copy, found.count);
    for (int64_t w = 0; w < col_words_; ++w) any |= same[w] = mixed(copy)[w] & ~differ[w];
    if (any != 0) found.copy[found.count++] = other;
  }

  // f(twin, its columns) of the copy's cells in a row; the same column may come again.
  template <class F>
  void each(int64_t copy, int64_t row, F f) const {
    if (is_felt(copy, row)) return;
    for (int64_t i = 0; i < found_[copy].count; ++i) {
      const int64_t other = found_[copy].copy[i];
      if (!is_felt(other, row)) f(other, cols(copy, i));
    }
  }

 private:
  static constexpr int64_t kMost = 4;  // of a copy; more are rare
  struct Found {
    int64_t count, copy[kMost];
  };

  bool is_felt(int64_t copy, int64_t row) const {
    return has_bit(rows_ + copy * row_words_, uint64_t(row));
  }
  uint64_t* mixed(int64_t copy) const { return mixed_ + copy * col_words_; }
  uint64_t* cols(int64_t copy, int64_t i) const { return cols_ + (copy * kMost + i) * col_words_; }

  int64_t row_words_, col_words_;
  uint64_t *rows_, *mixed_;  // [copy][row], [copy][col]
  Found* found_;             // [copy]
  uint64_t* cols_;           // [copy][twin][col]
};

}  // namespace fastsep::FASTSEP_ISA

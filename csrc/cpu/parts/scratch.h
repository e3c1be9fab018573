// A bump allocator over one buffer, and the rows that the sweeps keep in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "vec.h"

namespace fastsep::FASTSEP_ISA {

// Run once with a null base to measure, once over the buffer to hand it out.
class Bump {
 public:
  explicit Bump(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += ceil_div(count * int64_t(sizeof(T)), 64) * 64;
    return piece;
  }

  size_t used() const { return size_t(used_); }

 private:
  char* base_;
  int64_t used_ = 0;
};

// The last rows of a map in the blocked layout (or, with width 1, of one channel), with `pad` zero
// positions at both ends of each row and a zero row for times outside the map. Row t replaces row
// t - rows.
template <class T>
class Ring {
 public:
  Ring(Bump& bump, int64_t rows, int64_t channels, int64_t bins, int64_t frames, int64_t pad,
       int64_t width = kLanes<T>)
      : rows_(most(rows, 1)), frames_(frames), margin_(pad * width) {
    stride_ = bins * width + 2 * margin_;
    row_size_ = ceil_div(channels, width) * stride_;
    base_ = bump.take<T>((rows_ + 1) * row_size_);
  }

  // What is outside the map. Rows inside are written before they are read.
  void clear() const {
    if (row_size_ == 0) return;
    for (T* group = base_; group < base_ + rows_ * row_size_; group += stride_) {
      std::memset(group, 0, size_t(margin_) * sizeof(T));
      std::memset(group + stride_ - margin_, 0, size_t(margin_) * sizeof(T));
    }
    std::memset(base_ + rows_ * row_size_, 0, size_t(row_size_) * sizeof(T));
  }

  int64_t group_stride() const { return stride_; }

  // Row t with all its groups and padding, as one piece.
  int64_t row_size() const { return row_size_; }
  T* row(int64_t t) const { return (*this)[t] - margin_; }

  // Position 0 of row t.
  T* operator[](int64_t t) const {
    const int64_t slot = t < 0 || t >= frames_ ? rows_ : t % rows_;
    return base_ + slot * row_size_ + margin_;
  }

 private:
  int64_t rows_, frames_, margin_, stride_, row_size_;
  T* base_;
};

}  // namespace fastsep::FASTSEP_ISA

// Maps that a stack in training keeps: all clips' rows in the blocked layout, one after the other.
#pragma once

#include <cstdint>
#include <cstring>

#include "ahead.h"
#include "rows.h"
#include "vec.h"

namespace fastsep::FASTSEP_ISA {

template <class T>
class Kept {
 public:
  Kept() = default;

  // pad: zero positions at both ends of a row, which whoever writes it sets by clear_margins.
  Kept(void* base, int64_t channels, int64_t frames, int64_t bins, int64_t pad)
      : base_(static_cast<T*>(base)),
        frames_(frames),
        bins_(bins),
        groups_(ceil_div(channels, kLanes<T>)),
        margin_(pad * kLanes<T>),
        stride_(blocked_stride<T>(bins + 2 * pad)) {}

  int64_t size(int64_t clips) const { return clips * frames_ * row_size(); }
  int64_t row_size() const { return groups_ * stride_; }
  int64_t group_stride() const { return stride_; }

  // Position 0 of row (n, t).
  T* row(int64_t n, int64_t t) const { return base_ + (n * frames_ + t) * row_size() + margin_; }

  // Adds so many rows from (n, t) on, those of them that are in the map.
  void fetch(Ahead& ahead, int64_t n, int64_t t, int64_t rows) const {
    if (base_ == nullptr) return;
    ahead.add(row(n, t) - margin_, least(rows, frames_ - t) * row_size() * int64_t(sizeof(T)));
  }

  // With what only keeps groups apart: the same values give the same memory.
  void clear_margins(T* row) const {
    const int64_t used = bins_ * kLanes<T>;
    for (int64_t g = 0; g < groups_; ++g, row += stride_) {
      std::memset(row - margin_, 0, size_t(margin_) * sizeof(T));
      std::memset(row + used, 0, size_t(stride_ - margin_ - used) * sizeof(T));
    }
  }

 private:
  T* base_ = nullptr;
  int64_t frames_ = 0, bins_ = 0, groups_ = 0, margin_ = 0, stride_ = 0;
};

}  // namespace fastsep::FASTSEP_ISA
